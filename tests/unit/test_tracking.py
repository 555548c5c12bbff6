"""MLflow on a real database: the right status at the end, no point twice, never in the way."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from data_pipelines.errors import UserError
from tdformer.config import RunConfig
from tdformer.tracking import KILLED, Tracker, close_if_running, read_run_id


@pytest.fixture
def config(tmp_path: Path, empty_mlflow: Path) -> RunConfig:
    shutil.copy(empty_mlflow, tmp_path / "mlflow.db")
    tracking = {"uri": f"sqlite:///{tmp_path}/mlflow.db", "system_metrics": False}
    return RunConfig.model_validate({"name": "x", "data": {"train": "a", "val": "b"}, "tracking": tracking})


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def status(config: RunConfig, run_dir: Path) -> str:
    run_id = read_run_id(run_dir)
    assert run_id is not None
    return MlflowClient(config.tracking.uri).get_run(run_id).info.status


def points(config: RunConfig, run_dir: Path, name: str) -> list[tuple[int, float]]:
    history = MlflowClient(config.tracking.uri).get_metric_history(read_run_id(run_dir), name)
    return [(point.step, point.value) for point in history]


def test_a_run_is_running_then_finished_killed_or_failed(config: RunConfig, run_dir: Path) -> None:
    with Tracker(config, run_dir):
        assert status(config, run_dir) == "RUNNING"
    assert status(config, run_dir) == "FINISHED"
    with Tracker(config, run_dir) as tracker:
        assert status(config, run_dir) == "RUNNING"
        tracker.end(KILLED)
    assert status(config, run_dir) == "KILLED"
    with pytest.raises(ZeroDivisionError), Tracker(config, run_dir):
        _ = 1 / 0
    assert status(config, run_dir) == "FAILED"


def test_a_resume_doubles_no_point_and_loses_none(config: RunConfig, run_dir: Path) -> None:
    """The first process reached step 3 without evaluating; the second one replays from step 2 and evaluates at 3."""
    with Tracker(config, run_dir) as tracker:
        for step in (1, 2, 3):
            tracker.log(step, {"loss": float(step)})
    first_id = read_run_id(run_dir)
    with Tracker(config, run_dir) as tracker:
        for step in (2, 3, 4):
            tracker.log(step, {"loss": float(step), **({"top1": 50.0} if step == 3 else {})})
    assert read_run_id(run_dir) == first_id
    assert points(config, run_dir, "loss") == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]
    assert points(config, run_dir, "top1") == [(3, 50.0)]


def test_artifacts_lie_beside_the_database(config: RunConfig, run_dir: Path, tmp_path: Path) -> None:
    (run_dir / "config.yaml").write_text("name: x\n")
    with Tracker(config, run_dir) as tracker:
        tracker.log_file(run_dir / "config.yaml")
    assert [path.read_text() for path in (tmp_path / "mlflow_artifacts").rglob("config.yaml")] == ["name: x\n"]


def test_a_store_that_breaks_during_the_run_is_told_once_and_stops_nothing(
    config: RunConfig, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Tracker(config, run_dir) as tracker:
        tracker.log(1, {"loss": 1.0})
        (tmp_path / "mlflow.db").write_bytes(b"no database any more")
        tracker.log(2, {"loss": 2.0})
        tracker.log(3, {"loss": 3.0})
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning:")]
    assert len(warnings) == 1
    assert "cannot be written" in warnings[0]
    assert "training goes on" in warnings[0]


def test_an_unusable_store_is_refused_at_the_start(config: RunConfig, run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"no database")
    with pytest.raises(UserError, match=r"MLflow at sqlite:.* cannot be used .*mend tracking\.uri"):
        Tracker(config, run_dir)


def test_a_run_whose_process_died_is_closed_from_outside(config: RunConfig, run_dir: Path) -> None:
    close_if_running(config.tracking.uri, run_dir)  # not yet a run: nothing to do
    tracker = Tracker(config, run_dir)
    close_if_running(config.tracking.uri, run_dir)
    assert status(config, run_dir) == "FAILED"
    with tracker:
        pass
    close_if_running(config.tracking.uri, run_dir)
    assert status(config, run_dir) == "FINISHED"
