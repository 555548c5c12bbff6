"""A run beside a published curve: which one is found, what is said after each evaluation, and when it warns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.errors import UserError
from tdformer.config import RunConfig
from tdformer.reference_curves.curve import Curve, names, published_curve, read_curve
from tdformer.reference_curves.reference import find_reference
from tdformer.runs import reader
from tdformer.runs.comparison import compare, to_reference
from tdformer.runs.discovery import find_runs
from tdformer.runs.report import html_report
from tdformer.training.reference_watch import ReferenceWatch
from tests.conftest import tdformer, write_config
from tests.unit.generated_runs import write_run


def csv(folder: Path, *top1: float) -> Path:
    path = folder / "theirs.csv"
    path.write_text("epoch,val_top1\n" + "".join(f"{epoch},{value}\n" for epoch, value in enumerate(top1)))
    return path


def watch(*top1: float, **training: Any) -> ReferenceWatch:
    config = RunConfig.model_validate({"name": "x", "data": {"train": "a", "val": "b"}, "training": {"epochs": 10, **training}})
    return ReferenceWatch(Curve("theirs", {"val_top1": dict(enumerate(top1))}), config)


# --- curves --------------------------------------------------------------------------------------------------------


def test_published_curves_are_whole() -> None:
    assert len(names()) == 7
    for name in names():
        top1 = published_curve(name).column("val_top1")
        assert list(top1) == list(range(min(top1), min(top1) + len(top1)))
        assert all(0 < value < 100 for value in top1.values())
    assert published_curve("imagenet_qkformer_hst10_768_224").top1_after(200) == 84.266
    assert published_curve("imagenet_qkformer_hst10_768_224").top1_after(201) is None


def test_a_curve_is_found_by_name_in_a_file_and_in_a_run(tmp_path: Path) -> None:
    assert find_reference("cifar10_qkformer_hst4_384").top1_after(1) == 32.09
    assert find_reference(str(csv(tmp_path, 10.0, 20.0))).top1_after(2) == 20.0
    run = find_reference(str(write_run(tmp_path / "theirs", top1=(50.0, 70.0))))
    assert (run.name, run.top1_after(1), run.top1_after(2), run.top1_after(3)) == ("theirs", 50.0, 70.0, None)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "lacks the column 'epoch'"),
        ("epoch,top1\n0,1\n", r"lacks the column 'val_top1' \(needed are epoch and val_top1\)"),
        ("epoch,val_top1\n", "it has no rows"),
        ("epoch,val_top1\n0,high\n", "line 2: every value must be a number, and epoch a whole one"),
        ("epoch,val_top1\n0\n", "line 2: every value must be a number"),
        ("epoch,val_top1\n0.5,1\n", "line 2: every value must be a number, and epoch a whole one"),
        ("epoch,val_top1\n0,nan\n", "line 2: epoch must count from 0, each once, and val_top1 must be a finite number"),
        ("epoch,val_top1,loss\n0,,1\n", "val_top1 must be a finite number"),
        ("epoch,val_top1\n0,1\n0,2\n", "line 3: epoch must count from 0, each once"),
        ("epoch,val_top1\n-1,1\n", "line 2: epoch must count from 0"),
        ("epoch,val_top1\n\udcff,1\n", "cannot be read"),
    ],
)
def test_a_file_that_is_no_curve_is_told(text: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=sentence):
        read_curve(path)


def test_a_reference_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no published curve; did you mean cifar10_qkformer_hst4_384.*, no CSV file and no run directory"):
        find_reference("cifar10_qkformer_hst4")
    with pytest.raises(UserError, match=r"nowhere\.csv cannot be read \(No such file or directory\)"):
        find_reference(str(tmp_path / "nowhere.csv"))
    with pytest.raises(UserError, match="has no evaluation yet; choose a run that has"):
        find_reference(str(write_run(tmp_path / "young", top1=(), training_rows=0)))


# --- what is said --------------------------------------------------------------------------------------------------


def test_the_difference_is_told_after_each_evaluation() -> None:
    beside = watch(10.0, 63.9)
    assert beside.text(2, 61.3) == "  (reference 63.90 %, -2.60)"
    assert beside.text(1, 11.0) == "  (reference 10.00 %, +1.00)"
    assert beside.text(3, 70.0) == ""
    assert beside.announcement().endswith("ends at top-1 63.90 %; it has 2 epochs and this run 10, compared epoch by epoch")
    assert watch(*range(10)).announcement().endswith("ends at top-1 9.00 %")


def test_it_warns_when_the_run_stays_below_and_names_the_causes_in_their_order() -> None:
    beside = watch(*[50.0] * 10, precision="bf16", global_batch=128)
    said = {epoch: beside.warning(epoch, 45.0) for epoch in range(1, 10)}
    assert [epoch for epoch, warning in said.items() if warning] == [3, 6]
    assert "for 3 evaluations the run has been below its reference, now by 5.0 points" in (said[3] or "")
    causes = ["training.global_batch (128)", "learning rate (0.0003)", "precision (bf16)", "data.shuffle", "model.time_steps (4)"]
    places = [(said[3] or "").index(cause) for cause in causes]
    assert places == sorted(places)


def test_one_evaluation_within_the_corridor_begins_the_count_anew() -> None:
    beside = watch(*[50.0] * 10)
    assert not any(beside.warning(epoch, top1) for epoch, top1 in enumerate([40, 40, 48.5, 40, 40, 49, 40, 40], start=1))


def test_a_run_some_epochs_behind_is_within_the_corridor() -> None:
    rising = [5.0 * epoch for epoch in range(10)]
    assert not any(watch(*rising).warning(epoch, rising[max(epoch - 3, 0)]) for epoch in range(1, 11))
    late = watch(*rising)
    assert any(late.warning(epoch, rising[max(epoch - 5, 0)]) for epoch in range(1, 11))


def test_a_resume_goes_on_counting() -> None:
    beside = watch(*[50.0] * 10)
    resumed = ReferenceWatch(beside.curve, beside._config, [(1, 40.0), (2, 40.0)])
    assert resumed.warning(3, 40.0)


# --- a real run, and several ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_is_compared_while_it_trains_and_goes_on_without_a_lost_file(run_config: dict, tmp_path: Path) -> None:
    theirs = csv(tmp_path, 30.0, 99.0)
    run_config["training"] |= {"reference": str(theirs), "epochs": 2}
    path, run = write_config(run_config, tmp_path), tmp_path / "run"
    assert json.loads(tdformer("describe", path, "--json").stdout)["reference"] == "theirs"
    trained = tdformer("train", path, "--run-dir", run)
    assert trained.returncode == 0, trained.stderr
    assert "compared with the reference theirs, which ends at top-1 99.00 %\n" in trained.stdout
    assert "  (reference 99.00 %, -" in trained.stdout
    rows = [row for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "val/top1" in row]
    assert [row["reference/val_top1"] for row in rows] == [30.0, 99.0]

    theirs.unlink()
    again = tdformer("train", run)
    assert again.returncode == 0, again.stderr
    assert f"warning: the run goes on without its reference: the reference curve {theirs} cannot be read" in again.stdout
    refused = tdformer("train", path, "training.reference=cifar11_qkformer")
    assert refused.returncode == 2
    assert "training.reference: cifar11_qkformer is no published curve; did you mean" in refused.stderr
    assert not list((tmp_path / "runs").glob("*")), "a start that was refused leaves no run"


def test_compare_shows_how_far_each_run_is_from_its_reference(tmp_path: Path) -> None:
    near = write_run(tmp_path / "near", top1=(50.0, 70.0), config={"training": {"reference": "theirs.csv"}})
    write_run(tmp_path / "alone", top1=(50.0, 71.0))
    rows = [json.loads(line) for line in (near / "metrics.jsonl").read_text().splitlines()]
    beside = [{**row, "reference/val_top1": 72.5} if "val/top1" in row else row for row in rows]
    (near / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in beside))
    compared = compare(reader.read_all(find_runs([tmp_path])))
    assert {run.name: to_reference(run) for run in compared.runs} == {"near": -2.5, "alone": None}
    assert len(compared.groups) == 1, "a reference changes no result, so the runs are one setting"
    page = html_report.render(compared)
    assert "to reference" in page
    assert "<title>reference theirs.csv</title>" in page
    shown = tdformer("runs", "compare", tmp_path)
    assert "to reference" in shown.stdout
    assert "-2.50" in shown.stdout
    as_json = json.loads(tdformer("runs", "compare", tmp_path, "--json").stdout)
    assert {run["name"]: run["to_reference"] for run in as_json["runs"]} == {"near": -2.5, "alone": None}
