"""Tests that runs are read from their directories, compared, and printed on a terminal."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from data_pipelines.errors import UserError
from tdformer.models.registry import MODELS
from tdformer.rundir.lock_file import STALE_SECONDS
from tdformer.rundir.lock_holder import this_process
from tdformer.rundir.run_dir import RunDir
from tdformer.runs import config_keys, flat_config, formatting, json_output, metric_rows, paper_results, reader
from tdformer.runs.comparison import compare, default_metrics, outcome, unique_names
from tdformer.runs.discovery import find_runs
from tdformer.runs.filters import filtered
from tdformer.runs.run import Run
from tests.conftest import REPOSITORY, tdformer, write_config
from tests.unit.generated_runs import BEGAN, write_metrics, write_run
from tests.unit.test_light_imports import HEAVY


def read(folder: Path, **options: Any) -> list[Run]:
    return reader.read_all(find_runs([folder]), **options)


def by_name(runs: list[Run]) -> dict[str, Run]:
    return {run.name: run for run in runs}


# --- a real run -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_real_run_is_listed_shown_and_compared(run_config: dict, tmp_path: Path) -> None:
    trained = tdformer("train", write_config(run_config, tmp_path))
    assert trained.returncode == 0, trained.stderr
    folder = tmp_path / "runs"
    listed = json.loads(tdformer("runs", "list", folder, "--json").stdout)["runs"]
    assert [(run["name"], run["state"], run["epoch"], run["step"], run["epochs"]) for run in listed] == [("tiny-001", "finished", 2, 6, 2)]
    evaluations = [row for row in map(json.loads, (folder / "tiny-001/metrics.jsonl").read_text().splitlines()) if "val/top1" in row]
    assert listed[0]["metrics"]["val/top1"]["best"]["value"] == max(row["val/top1"] for row in evaluations)
    assert listed[0]["metrics"]["val/top1"]["last"]["value"] == evaluations[-1]["val/top1"]
    assert listed[0]["images_per_s"] > 0
    shown = tdformer("runs", "show", folder / "tiny-001")
    assert shown.returncode == 0, shown.stderr
    for text in (
        "state",
        "finished",
        "model.backbone.embed_dims",
        "default 768",
        "val/top1",
        "step-00000006",
        "MLflow",
        "tdformer evaluate",
    ):
        assert text in shown.stdout
    compared = tdformer("runs", "compare", folder, "--html", tmp_path / "report.html")
    assert compared.returncode == 0, compared.stderr
    assert "tiny-001" in compared.stdout
    assert "tiny-001" in (tmp_path / "report.html").read_text()


# --- reading ----------------------------------------------------------------------------------------------


def test_best_is_found_among_all_rows_and_last_is_the_last(tmp_path: Path) -> None:
    run = reader.read(write_run(tmp_path / "run-001", top1=[10, 40, 30, 20.5]))
    found = outcome(run, "val/top1")
    assert found is not None
    assert found.best == (20, 2, 40)
    assert found.last == (40, 4, 20.5)
    loss = outcome(run, "val/loss")
    assert loss is not None
    assert loss.best.value == pytest.approx(3 - 40 / 50)  # The lowest loss is the best.


def test_a_training_metric_has_its_best_among_rows_that_no_sample_hits(tmp_path: Path) -> None:
    lines = [json.dumps({"step": step, "epoch": step / 100, "train/loss": 2.0, "train/lr": 0.1}) for step in range(1, 1001)]
    lines[776] = json.dumps({"step": 777, "epoch": 7.77, "train/loss": 0.125, "train/lr": 0.1})
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    found = metric_rows.read(tmp_path / "metrics.jsonl", samples=10, extremes_of=["train/loss"])
    assert min(found.series("train/loss"), key=lambda point: point.value) == (777, 7.77, 0.125)
    assert len(found.rows) < 20
    assert found.rows[-1]["step"] == 1000


def test_many_runs_read_in_processes_are_those_read_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        write_run(tmp_path / f"run-{number}", top1=[number, 50 - number], images_per_s=100 + number)
    metrics = ["val/loss", "train/loss", "train/lr"]
    alone = read(tmp_path, metrics=metrics, samples=7)
    monkeypatch.setattr(reader, "RUNS_FOR_ONE_PROCESS", 1)
    in_processes = read(tmp_path, metrics=metrics, samples=7)
    assert [json_output.run_as_dict(run, metrics) for run in in_processes] == [json_output.run_as_dict(run, metrics) for run in alone]
    with pytest.raises(UserError, match="did you mean train/mfu"):
        compare(in_processes, ["train/mfuu"])


def test_values_that_are_not_finite_are_never_the_best(tmp_path: Path) -> None:
    run = reader.read(write_run(tmp_path / "run-001", top1=[10.0, math.nan, math.inf, 5.0]))
    found = outcome(run, "val/top1")
    assert found is not None
    assert found.best.value == 10
    run = reader.read(write_run(tmp_path / "run-002", top1=[1.0, math.nan]))
    found = outcome(run, "val/top1")
    assert found is not None
    assert math.isnan(found.last.value)
    assert json.loads(json.dumps(json_output.without_nan(json_output.run_as_dict(run, ["val/top1"])), allow_nan=False))


def test_hours_are_those_of_all_sessions_times_processes(tmp_path: Path) -> None:
    half, quarter = {"seen": BEGAN + 1800, "world_size": 4, "gpus": 4}, {"seen": BEGAN + 900, "world_size": 2, "gpus": 2}
    run = reader.read(write_run(tmp_path / "gpu", sessions=[half, quarter]))
    assert run.gpu_hours == pytest.approx(0.5 * 4 + 0.25 * 2)
    assert run.cpu_process_hours is None
    run = reader.read(write_run(tmp_path / "cpu", sessions=[{**half, "gpus": 0}]))
    assert run.gpu_hours is None
    assert run.cpu_process_hours == pytest.approx(2)


def test_states(tmp_path: Path) -> None:
    for status in ("finished", "stopped", "failed"):
        assert reader.read(write_run(tmp_path / status, sessions=[{"status": "running"}, {"status": status}])).state == status
    killed = write_run(tmp_path / "killed", sessions=[{"status": "running"}])
    assert reader.read(killed).state == "lost"
    RunDir(killed).lock.write_text(json.dumps(asdict(this_process(killed))))
    assert reader.read(killed).state == "running"
    dead = {**asdict(this_process(killed)), "started": "0"}
    RunDir(killed).lock.write_text(json.dumps(dead))
    assert reader.read(killed).state == "lost"
    elsewhere = {**dead, "machine": "another"}
    RunDir(killed).lock.write_text(json.dumps(elsewhere))
    assert reader.read(killed).state == "running"  # The lock was renewed a moment ago.
    old = time.time() - 10 * STALE_SECONDS
    os.utime(RunDir(killed).lock, (old, old))
    assert reader.read(killed).state == "lost"


def test_states_without_sessions(tmp_path: Path) -> None:
    assert reader.read(write_run(tmp_path / "whole", sessions=[])).state == "finished"  # It has 4 epochs of 4.
    assert reader.read(write_run(tmp_path / "part", sessions=[], top1=[1, 2])).state == "stopped"
    new = write_run(tmp_path / "new", sessions=[])
    (new / "metrics.jsonl").unlink()
    assert reader.read(new).state == "new"
    (new / "slurm").mkdir()
    assert reader.read(new).state == "queued"


def test_runs_are_found_in_folders_and_sweeps_and_each_once(tmp_path: Path) -> None:
    for name in ("a-001", "sweep-001/a-001", "sweep-001/a-002"):
        write_run(tmp_path / name)
    (tmp_path / "mlflow_artifacts" / "1" / "abc" / "artifacts").mkdir(parents=True)
    (tmp_path / "mlflow_artifacts" / "1" / "abc" / "artifacts" / "config.yaml").write_text("name: copy\n")
    found = find_runs([tmp_path, tmp_path / "a-001", tmp_path / "sweep-001"])
    assert [str(path.relative_to(tmp_path)) for path in found] == ["a-001", "sweep-001/a-001", "sweep-001/a-002"]
    names = unique_names(read(tmp_path))
    assert len(set(names.values())) == 3
    with pytest.raises(UserError, match="holds none"):
        find_runs([tmp_path / "mlflow_artifacts"])
    with pytest.raises(UserError, match="there is no folder"):
        find_runs([tmp_path / "nowhere"])


# --- damage -----------------------------------------------------------------------------------------------

DAMAGES = {
    "config is garbage": ("config.yaml", b"\x00\x01: [", "config.yaml is damaged"),
    "config is a list": ("config.yaml", b"- 1\n- 2\n", "config.yaml is damaged"),
    "config is half": ("config.yaml", b"name: made\ndata: {train: [", "config.yaml is damaged"),
    "config is empty": ("config.yaml", b"", "config.yaml is damaged"),
    "config is not UTF-8": ("config.yaml", b"name: \xff\xfe\n", "config.yaml is damaged"),
    "metrics are garbage": ("metrics.jsonl", bytes(range(256)) * 20 + b"\n", "metrics.jsonl is damaged"),
    "metrics are nested": ("metrics.jsonl", b"[" * 100_000 + b"\n", "metrics.jsonl is damaged"),
    "metrics are other JSON": ("metrics.jsonl", b'{"val/top1": 3}\n', "metrics.jsonl is damaged"),
    "a session is half": ("sessions/0001.json", b'{"began": 17', "sessions/0001.json cannot be read"),
    "a session is other JSON": ("sessions/0001.json", b"[]", "sessions/0001.json cannot be read"),
    "a session has no numbers": (
        "sessions/0001.json",
        b'{"began": "x", "seen": null, "world_size": {}}',
        "sessions/0001.json cannot be read",
    ),
    "a pointer is garbage": ("checkpoints/latest", bytes(range(256)), "checkpoints/latest names no checkpoint"),
    "the lock is garbage": ("lock.json", b"\xff\xff", None),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_of_one_run_is_noted_and_hides_no_other(tmp_path: Path, damage: str) -> None:
    name, content, note = DAMAGES[damage]
    for number in (1, 2, 3):
        write_run(tmp_path / f"run-00{number}", config={"seed": number})
    (tmp_path / "run-002" / name).write_bytes(content)
    comparison = compare(read(tmp_path))
    runs = by_name(comparison.runs)
    assert len(runs) == 3
    assert not runs["run-001"].notes
    assert not runs["run-003"].notes
    if note:
        assert any(note in text for text in runs["run-002"].notes)
    assert json.dumps(json_output.comparison_as_dict(comparison))


def test_a_row_that_is_cut_off_is_left_out_and_noted_unless_the_run_is_alive(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run-001", top1=[1, 2, 3])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99, "epoch": 9, "val/top1": 100')
    found = reader.read(run)
    assert found.metrics.series("val/top1")[-1].value == 3
    assert found.notes == ["metrics.jsonl ends within a row, which is left out"]
    (run / "sessions" / "0001.json").write_text(json.dumps({"began": 1, "seen": 2, "world_size": 1}))
    RunDir(run).lock.write_text(json.dumps(asdict(this_process(run))))
    assert not reader.read(run).notes


def test_a_damaged_row_in_the_middle_costs_that_row_alone(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run-001", top1=[1, 2, 3])
    lines = (run / "metrics.jsonl").read_text().splitlines()
    place = next(index for index, line in enumerate(lines) if '"val/top1": 2' in line)
    lines[place] = lines[place][:-5]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    found = reader.read(run)
    assert [point.value for point in found.metrics.series("val/top1")] == [1, 3]
    assert "1 of the rows" in found.notes[0]


# --- comparing --------------------------------------------------------------------------------------------


def test_seeds_are_one_group_with_the_mean_and_deviation_of_numpy(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(90, 2, (2, 4))
    for setting, rate in enumerate((0.1, 0.2)):
        for seed in range(4):
            changes = {
                "seed": seed,
                "name": f"n{seed}",
                "output": f"/disk{seed}",
                "optimizer": {"base_lr": rate},
                "data": {"workers": seed},
            }
            curve = [values[setting, seed] - 5, values[setting, seed], values[setting, seed] - 1]
            write_run(tmp_path / f"run-{setting}{seed}", top1=curve, config=changes)
    comparison = compare(read(tmp_path))
    assert len(comparison.groups) == 2
    for group in comparison.groups:
        setting = 0 if group.setting == {"optimizer.base_lr": 0.1} else 1
        assert sorted(group.seeds) == [0, 1, 2, 3]
        best, last = group.spread("val/top1"), group.spread("val/top1", "last")
        assert best is not None
        assert last is not None
        assert best.mean == pytest.approx(values[setting].mean())
        assert best.deviation == pytest.approx(values[setting].std(ddof=1))
        assert last.mean == pytest.approx(values[setting].mean() - 1)
    means = [group.spread("val/top1").mean for group in comparison.groups]  # type: ignore[union-attr]
    assert means == sorted(means, reverse=True)
    assert comparison.shown == ["seed", "optimizer.base_lr"]
    assert {"name", "output", "data.workers"} < set(comparison.differing)


def test_groups_note_what_a_mean_hides(tmp_path: Path) -> None:
    write_run(tmp_path / "a", config={"seed": 1})
    write_run(tmp_path / "b", config={"seed": 1})
    write_run(tmp_path / "c", config={"seed": 2}, sessions=[{"status": "failed"}])
    (group,) = compare(read(tmp_path)).groups
    assert group.notes == ["1 not finished", "2 runs share a seed"]


def test_one_run_has_no_deviation(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    (group,) = compare(read(tmp_path)).groups
    spread = group.spread("val/top1")
    assert spread is not None
    assert spread.deviation is None
    assert formatting.spread_of("val/top1", spread) == "90.00"


def test_another_data_set_is_another_experiment_and_another_disk_is_not(tmp_path: Path) -> None:
    places = {"a": "data/mnist/train", "b": "/scratch/me/mnist/train", "c": "data/fashion/train"}
    for name, place in places.items():
        write_run(tmp_path / name, config={"data": {"train": place}})
    comparison = compare(read(tmp_path))
    assert sorted(sorted(run.name for run in group.runs) for group in comparison.groups) == [["a", "b"], ["c"]]


def test_a_section_that_is_null_is_one_difference(tmp_path: Path) -> None:
    write_run(tmp_path / "with")
    write_run(tmp_path / "without", config={"model": {"feedback": None}})
    comparison = compare(read(tmp_path))
    assert comparison.differing == ["model.feedback"]
    assert {run.name: config_keys.value(run.config, "model.feedback") for run in comparison.runs} == {"with": "on", "without": None}
    write_run(tmp_path / "other", config={"model": {"feedback": {"control": "cm2"}}})
    assert compare(read(tmp_path)).differing == ["model.feedback", "model.feedback.control"]


def test_keys_younger_than_a_run_are_no_difference(tmp_path: Path) -> None:
    write_run(tmp_path / "young")
    old = write_run(tmp_path / "old")
    tree = yaml.safe_load((old / "config.yaml").read_text())
    del tree["profiling"], tree["training"]["ema_decay"]
    (old / "config.yaml").write_text(yaml.safe_dump(tree))
    assert compare(read(tmp_path)).differing == []


@pytest.mark.parametrize(
    "text",
    [
        "name: a\ndata: {train: x,\nval: y}\n",
        "---\nname: a\ndata:\n  train: x\n",
        'name: a\ninit: "two\n\n  lines"\n',
        "base: &anchor {a: 1}\nother: *anchor\n",
        "# nothing but a comment above\nname: a\n\n# and below\n",
        "name: a\nlist:\n- 1\n- 2\n",
    ],
)
def test_configurations_are_read_in_pieces_as_they_are_whole(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    flat = flat_config.read_flat(tmp_path / "config.yaml")
    whole = flat_config.flat_tree(yaml.safe_load(text))
    assert {key: flat[key] for key in whole} == whole


def test_an_average_is_a_metric_by_default_where_there_is_one(tmp_path: Path) -> None:
    assert default_metrics([reader.read(write_run(tmp_path / "a"))]) == ["val/top1", "val/loss"]
    averaged = write_run(tmp_path / "b")
    (averaged / "metrics.jsonl").write_text('{"step": 1, "epoch": 1, "val/top1": 1.0, "val/top1_ema": 2.0}\n')
    assert default_metrics([reader.read(averaged)]) == ["val/top1", "val/top1_ema", "val/loss"]


def test_filters(tmp_path: Path) -> None:
    for name, rate in (("a", 3e-4), ("b", 1e-3)):
        write_run(tmp_path / name, config={"optimizer": {"base_lr": rate}})
    write_run(tmp_path / "c", sessions=[{"status": "failed"}], config={"model": {"feedback": {"control": "cm2"}}})
    runs = read(tmp_path)

    def names(*conditions: str) -> list[str]:
        return [run.name for run in filtered(runs, conditions)]

    assert names("optimizer.base_lr=3e-4") == ["a"]
    assert names("state=finished", "optimizer.base_lr=0.001") == ["b"]
    assert names("model.feedback.control=cm2") == ["c"]
    assert names("model.backbone.depths=[1, 2, 7]") == ["a", "b", "c"]
    assert names("training.clip_grad=null") == ["a", "b", "c"]
    assert names("model.carry_membrane=1") == []  # In JSON, true is no number.
    with pytest.raises(UserError, match=r"no run has a key optimizer\.base_rl; did you mean optimizer\.base_lr"):
        names("optimizer.base_rl=1")
    with pytest.raises(UserError, match="is not of the form"):
        names("seed")


# --- the paper --------------------------------------------------------------------------------------------


def test_the_papers_numbers_are_those_of_the_registry() -> None:
    """The registry states the numbers as text. It imports torch, so the comparison does not read them there."""
    stated = " ".join(model.paper for model in MODELS.values())
    for published in paper_results.PUBLISHED:
        matching = [model for model in MODELS.values() if model.config.backbone == published.backbone]
        assert matching, published
        for row in published.rows:
            assert f"{row.top1:.2f}" in stated, row
            assert row.parameters in stated


def test_references_are_of_the_same_network_data_and_size(tmp_path: Path) -> None:
    def found(**config: Any) -> list[tuple[str, float]]:
        run = reader.read(write_run(tmp_path / str(len(list(tmp_path.iterdir()))), config=config))
        return [(row.network, row.top1) for row in paper_results.matching_references([run.config])]

    imagenet = {"train": "/data/ImageNet-1k/train", "val": "/data/ImageNet-1k/val"}
    at_288 = found(data={**imagenet, "image_size": 288})
    assert at_288 == [("QKFormer HST-10-768", 85.2), ("TDFormer HST-10-768, 1 block", 86.29), ("TDFormer HST-10-768", 86.43)]
    assert found(data={**imagenet, "image_size": 256}) == []
    assert found(data=imagenet, model={"time_steps": 8}) == []
    assert found(data=imagenet, model={"num_classes": 100}) == []
    assert found() == []  # There are no results on MNIST in the paper.
    cifar = {"backbone": {"variant": "cifar", "embed_dims": 384, "num_heads": 8, "depths": [1, 1, 2]}, "num_classes": 10}
    data = {"train": "data/cifar-10/train", "image_size": 32}
    assert found(model=cifar, data=data) == [("QKFormer HST-4-384", 96.18), ("TDFormer, QKFormer HST-4-384", 96.51)]
    assert found(model=cifar, data={**data, "train": "data/mnist/train"}) == []
    assert found(model={**cifar, "backbone": {**cifar["backbone"], "drop_path": 0.1}}, data=data) != []
    assert found(model={**cifar, "backbone": {**cifar["backbone"], "mlp_ratio": 1}}, data=data) == []
    spikformer = {"family": "spikformer", "variant": "cifar", "embed_dims": 384, "num_heads": 12, "depths": [4]}
    assert found(model={"backbone": spikformer, "num_classes": 10}, data=data) != []
    assert found(model={"backbone": {**spikformer, "pooling": "1100"}, "num_classes": 10}, data=data) == []


# --- commands ---------------------------------------------------------------------------------------------


def test_commands_print_for_people_and_programs(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path / f"run-{seed}", top1=[80 + seed], config={"seed": seed})
    listed = tdformer("runs", "list", tmp_path, "--sort", "best", "--limit", 1)
    assert "run-1" in listed.stdout
    assert "run-0" not in listed.stdout
    compared = tdformer("runs", "compare", tmp_path)
    assert "80.50 ± 0.71" in compared.stdout
    tree = json.loads(tdformer("runs", "compare", tmp_path, "--metric", "train/loss", "--json").stdout)
    assert tree["metrics"] == ["train/loss"]
    assert tree["settings"][0]["metrics"]["train/loss"]["best"] == {"mean": 0.5, "standard_deviation": 0.0, "runs": 2}
    shown = json.loads(tdformer("runs", "show", tmp_path / "run-0", "--json").stdout)
    assert shown["not_default"]["training.epochs"] == 4
    assert shown["sessions"][0]["device"] == "NVIDIA H100"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["list", "nowhere"], "there is no folder nowhere"),
        (["show", "nowhere"], "is no run directory"),
        (["compare", "{runs}", "--metric", "val/top2"], "no run has a metric 'val/top2'; did you mean"),
        (["compare", "{runs}", "--filter", "state=lost"], "no run fulfils every --filter"),
        (["compare", "{runs}", "--html", "{runs}"], "is a folder"),
        (["compare", "{runs}", "--html", "{runs}/a/config.yaml"], "is no report of this command"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(tmp_path: Path, arguments: list[str], sentence: str) -> None:
    write_run(tmp_path / "a")
    result = tdformer("runs", *(argument.format(runs=tmp_path) for argument in arguments))
    assert result.returncode == 2
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1


def test_comparing_loads_neither_torch_nor_mlflow(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    program = (
        "import sys\nfrom launch.cli import app\n"
        f"app(['runs', 'compare', {str(tmp_path)!r}, '--html', {str(tmp_path / 'x.html')!r}], standalone_mode=False)\n"
        f"app(['runs', 'show', {str(tmp_path / 'a')!r}], standalone_mode=False)\n"
        f"print('LOADED', [name for name in {(*HEAVY, 'matplotlib', 'numpy')!r} if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    assert "LOADED []" in shown


@pytest.mark.slow
def test_five_hundred_runs(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    write_metrics(metrics, [float(n % 90) for n in range(200)], 2000, 100.0)
    for number in range(500):
        run = write_run(
            tmp_path / "runs" / f"run-{number:03d}", top1=[], config={"seed": number % 5, "optimizer": {"base_lr": 1 + number // 5}}
        )
        (run / "metrics.jsonl").unlink()
        os.link(metrics, run / "metrics.jsonl")
    result = tdformer("runs", "compare", tmp_path / "runs", "--html", tmp_path / "report.html", "--json")
    assert result.returncode == 0, result.stderr
    tree = json.loads(result.stdout)
    assert (len(tree["runs"]), len(tree["settings"])) == (500, 100)
    assert all(run["metrics"]["val/top1"]["best"]["value"] == 89 for run in tree["runs"])
    assert (tmp_path / "report.html").stat().st_size < 5e6
