"""`tdformer study` on real runs: settings x seeds, resumable, compared seed by seed; and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.conftest import write_config
from tests.distributed.starter import tdformer
from tests.runs import finished

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
    assert "run 1 of 4" not in finished("study", study, "--report").stdout


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
        ({"seeds": []}, "seeds"),
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
