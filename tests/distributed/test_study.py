"""`tdformer study` on real runs: settings x seeds, resumable, compared seed by seed; and what it refuses."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import signal
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from data_pipelines.loading.open_dataset import open_dataset
from data_pipelines.prepare.corrupted_source import CorruptedSource
from tdformer.analysis.analyze import PARTS
from tdformer.rundir.run_dir import RunDir
from tdformer.rundir.run_lock import this_process
from tdformer.runs import reader
from tests.conftest import write_config
from tests.distributed.starter import Started, tdformer
from tests.distributed.test_bad_input import assert_one_sentence
from tests.runs import finished
from tests.stripes import StripesSource, stored

pytestmark = pytest.mark.slow


def write_study(folder: Path, config: Path, **changes: object) -> Path:
    study = {
        "name": "small",
        "base": str(config),
        "output": str(folder / "out"),
        "settings": {"plain": {"model.feedback": None}, "topdown": {}},
        "shared": {"training.epochs": 1},
        "seeds": [1, 2],
        **changes,
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study))
    return path


def test_a_study_from_its_plan_to_its_result(run_config: dict, tmp_path: Path) -> None:
    study = write_study(tmp_path, write_config(run_config, tmp_path))
    planned = json.loads(finished("study", study, "--dry-run", "--json").stdout)["runs"]
    assert [(run["setting"], run["seed"], run["state"]) for run in planned] == [
        (setting, seed, "new") for seed in (1, 2) for setting in ("plain", "topdown")
    ]
    assert not (tmp_path / "out").exists()

    finished("train", tmp_path / "run.yaml", *overrides_of(planned[0]))
    told = finished("study", study)
    assert "run 1 of 4" not in told.stdout, "it is finished"
    assert "run 2 of 4: topdown, seed 1" in told.stdout
    for run in planned:
        assert (Path(run["run"]) / "checkpoints" / "latest").exists()
    assert "minus plain" in told.stdout

    result = json.loads(finished("study", study, "--json").stdout)
    plain, topdown = result["settings"]
    assert (plain["difference"], topdown["difference"]["seeds"]) == (None, [1, 2])
    values = {name: setting["values"] for name, setting in (("plain", plain), ("topdown", topdown))}
    deltas = [values["topdown"][seed] - values["plain"][seed] for seed in ("1", "2")]
    assert topdown["difference"]["mean"] == pytest.approx(sum(deltas) / 2)
    assert topdown["by_epoch"][-1]["mean"] == topdown["difference"]["mean"]
    assert {state for states in result["states"].values() for state in states.values()} == {"finished"}
    told = finished("study", study, "--results", tmp_path / "results")
    assert "run 1 of 4" not in told.stdout
    assert len(list((tmp_path / "results").glob("*.json"))) == 4, "what runs said that were finished before is kept too"

    write_study(tmp_path, tmp_path / "run.yaml", shared={"training.epochs": 1, "optimizer.base_lr": 0.5})
    for options in ((), ("--report",), ("--dry-run",)):
        assert_one_sentence(
            tdformer("study", study, *options), "plain-seed-1 is of another study: optimizer.base_lr is 0.01 there, and 0.5"
        )


def test_what_runs_say_is_analysed_and_kept_when_the_runs_are_gone(run_config: dict, tmp_path: Path) -> None:
    """Another process that trains a run keeps it. A study that is started beside it goes on with the others."""
    val = stored(StripesSource(120, seed=3), tmp_path / "val")
    stored(CorruptedSource(open_dataset(val), "fog", 3, seed=0, samples=50), tmp_path / "suite" / "fog-3")
    run_config["data"]["val"] = str(val)
    study = write_study(tmp_path, write_config(run_config, tmp_path), settings={"topdown": {}})
    taken = RunDir(tmp_path / "out" / "small" / "topdown-seed-2")
    taken.path.mkdir(parents=True)
    taken.config.write_text(yaml.safe_dump({**run_config, "training": {**run_config["training"], "epochs": 1}}))
    taken.lock.write_text(json.dumps(asdict(this_process(taken.path))))
    options = (study, "--results", tmp_path / "results")
    measured = ("--analyze", "--samples", 100, "--suite", tmp_path / "suite")
    told = finished("study", *options, *measured, "--html", tmp_path / "page.html")
    assert f"another process trains {taken}" in told.stdout
    assert "1 of 2 runs are not finished" in told.stderr
    assert "<h2>Errors on corrupted images</h2>" in (tmp_path / "page.html").read_text()

    record = json.loads((tmp_path / "results" / "topdown-seed-1.json").read_text())
    assert set(record["analysis"]) == {"samples", *PARTS, "corruptions"}
    assert set(record["analysis"]["attention_maps"]["focus"]) == {"clean", "fog-3"}
    assert record["analysis"]["corruptions"]["errors"].keys() == {"fog"}
    shutil.rmtree(tmp_path / "out")
    planned = json.loads(finished("study", *options, "--dry-run", "--json").stdout)["runs"]
    assert [run["state"] for run in planned] == ["finished", "new"]
    shown = json.loads(finished("study", *options, "--report", "--json").stdout)
    assert shown["settings"][0]["values"] == {"1": record["curves"]["val/top1"]["1"]}
    assert shown["claims"] == [], "one seed judges nothing"

    write_study(tmp_path, tmp_path / "run.yaml", settings={"topdown": {"model.segments": 1}})
    assert_one_sentence(tdformer("study", *options, "--report"), "is of another study: model.segments is 2 there, and 1 here")
    assert_one_sentence(tdformer("study", study, "--suite", tmp_path / "suite"), "--suite is for --analyze")
    assert_one_sentence(tdformer("study", study, "--analyze", "--slurm"), "train with --slurm first")


def test_a_study_that_is_told_to_stop_stops_its_run_too(run_config: dict, tmp_path: Path) -> None:
    run_config["training"]["epochs"] = 50
    study = write_study(tmp_path, write_config(run_config, tmp_path), shared={}, settings={"topdown": {}}, seeds=[1])
    started = Started("launch", ["study", study], {}, tmp_path / "output")
    shown = tmp_path / "output.stdout"
    while not (shown.exists() and "step 2/" in shown.read_text()):
        assert started.poll() is None, started.output("stderr")
        time.sleep(0.05)
    os.kill(started.pid, signal.SIGTERM)
    assert started.wait(60) == 75
    run = tmp_path / "out" / "small" / "topdown-seed-1"
    assert reader.read(run).state == "stopped"


def overrides_of(run: dict) -> tuple[str, ...]:
    path = Path(run["run"])
    own = (f"name={run['setting']}", f"output={path.parent}", f"seed={run['seed']}")
    return ("training.epochs=1", "model.feedback=null", *own, "--run-dir", str(path))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"settings": {}}, "settings must hold at least one setting"),
        ({"settings": {"a": {"model.segmnts": 1}}}, "setting a of study"),
        ({"settings": {"a": {"seed": 3}}}, "a must leave seed to the study"),
        ({"shared": {"output": "x"}}, "shared must leave output to the study"),
        ({"seeds": [1, 1]}, "seeds must differ"),
        ({"seeds": []}, "seeds must hold at least one seed"),
        ({"seeds": [-1]}, "seeds.0: got -1, allowed is "),
        ({"settings": {"a": {}, "A": {}}}, "settings must differ in more than upper and lower case, got "),
        ({"settings": {"a": {"data.train": datetime.date(2020, 1, 1)}}}, "a must hold numbers, texts, true, false, null"),
        ({"output": "/dev/null/x"}, "folder /dev/null/x/small cannot be made (Not a directory); choose another output"),
        ({"baseline": "nothing"}, "baseline must be one of the settings (plain, topdown), got nothing"),
        ({"base": "nowhere.yaml"}, "configuration nowhere.yaml cannot be read"),
        ({"settings": {"a b": {}}}, "settings"),
        ({"seets": 3}, "did you mean seeds?"),
    ],
)
def test_a_study_that_cannot_be_run_is_refused_before_anything_starts(
    run_config: dict, tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    result = tdformer("study", write_study(tmp_path, write_config(run_config, tmp_path), **changes))
    assert result.returncode == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_run_that_fails_ends_the_study_and_is_named(run_config: dict, tmp_path: Path) -> None:
    run_config["data"]["val"] = str(tmp_path / "nowhere")
    result = tdformer("study", write_study(tmp_path, write_config(run_config, tmp_path)))
    assert result.returncode == 2
    assert f"run {tmp_path}/out/small/plain-seed-1 ended with exit code 2; mend what it said, and the same command goes on" in result.stderr
