"""A disk that is full while a checkpoint or the metrics are written: said in one sentence; what was there stays whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from tdformer.checkpoint import store
from tdformer.checkpoint.format import Checkpoint, check
from tdformer.rundir.run_dir import RunDir
from tests.distributed.starter import tdformer
from tests.faults.several import train
from tests.runs import ReferenceRun, bits, curve, tracked

pytestmark = pytest.mark.slow

MAIN = "tests.faults.disk_worker"


def size_of_model(reference: ReferenceRun) -> int:
    return (reference.run / "checkpoints" / "step-00000001" / "model.safetensors").stat().st_size


@pytest.mark.parametrize("place", ["half of the model", "half of the optimizer"])
def test_go_on(reference: ReferenceRun, tmp_path: Path, place: str) -> None:
    """The checkpoints of steps 2, 3 and 6 are not taken; that of step 4 is."""
    model = size_of_model(reference)
    size = {"half of the model": model // 2, "half of the optimizer": model + 1000}[place]
    config = reference.config(tmp_path)
    config["checkpoint"]["background"] = False  # as a rule, MLflow does not meet the full disk then
    ended = train(MAIN, 2, config, tmp_path, {"FULL_AT": "2,3,6", "FULL_BYTES": str(size)})
    ended.assert_finished()
    warnings = [line for line in ended.output.splitlines() if line.startswith("warning:")]
    assert [line for line in warnings if "cannot be written" in line and "earlier ones are whole" in line] == warnings
    assert len(warnings) == 3
    whole = sorted(path.name for path in (ended.run / "checkpoints").glob("step-*"))
    assert whole == [f"step-{step:08d}" for step in (1, 4, 5, 7, 8)]
    for name in whole:
        check(Checkpoint(RunDir(ended.run).checkpoints, name))
    assert not list((ended.run / "checkpoints").glob(".partial-*"))
    assert bits(ended.run) == bits(reference.run)
    assert curve(ended.run) == curve(reference.run)


def test_stop(reference: ReferenceRun, tmp_path: Path) -> None:
    config = reference.config(tmp_path)
    config["checkpoint"]["on_failure"] = "stop"
    ended = train(MAIN, 2, config, tmp_path, {"FULL_AT": "2", "FULL_BYTES": "1000"})
    ended.assert_refused("step-00000002 cannot be written", "earlier ones are whole")
    assert store.latest_valid(RunDir(ended.run))[0].name == "step-00000001"
    result = tdformer("train", ended.run)
    assert result.returncode == 0, result.stderr
    assert bits(ended.run) == bits(reference.run)


def test_at_the_end_it_is_an_error(reference: ReferenceRun, tmp_path: Path) -> None:
    """A finished run must not end without its result. The last checkpoint before its evaluation is there."""
    ended = train(MAIN, 2, reference.config(tmp_path), tmp_path, {"FULL_AT": "8", "FULL_BYTES": "1000"})
    ended.assert_refused("step-00000008 cannot be written")
    assert store.latest_valid(RunDir(ended.run))[0].name == "step-00000007"
    assert tdformer("train", ended.run, "--processes", 2).returncode == 0
    assert bits(ended.run) == bits(reference.run)
    assert curve(ended.run) == curve(reference.run)


def test_metrics_that_do_not_fit_are_told_once_and_written_as_soon_as_they_do(reference: ReferenceRun, tmp_path: Path) -> None:
    ended = train(MAIN, 2, reference.config(tmp_path), tmp_path, {"FULL_FOR_METRICS_AT": "3,4"})
    ended.assert_finished()
    warnings = [line for line in ended.output.splitlines() if line.startswith("warning:")]
    assert len(warnings) == 1, warnings
    assert "metrics.jsonl cannot be written" in warnings[0]
    assert curve(ended.run) == curve(reference.run)
    assert tracked(ended.run) == tracked(reference.run)
    assert bits(ended.run) == bits(reference.run)
