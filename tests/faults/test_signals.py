"""A stop signal to one rank, wherever it finds it: all ranks save and leave with 75, and the resume ends with the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest

from tdformer.checkpoint import store
from tdformer.rundir.run_dir import RunDir
from tests.faults.several import train
from tests.runs import ReferenceRun, difference, resume, tracked

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("number", "moment", "rank", "stopped_at"),
    [
        ("SIGUSR1", "training", 1, {1, 2}),
        ("SIGTERM", "evaluation", 1, {4}),
        ("SIGTERM", "saving", 0, {3, 4}),
        ("SIGUSR1", "saving", 0, {3, 4}),
    ],
)
def test_a_signal(reference: ReferenceRun, tmp_path: Path, number: str, moment: str, rank: int, stopped_at: set[int]) -> None:
    """SIGTERM in training: see test_resume. saving: rank 0 gets another one in the save that the first one leads to."""
    environment = {"SIGNAL": number, "SIGNAL_IN": moment, "SIGNAL_RANK": str(rank)}
    ended = train("tests.faults.signals_worker", 2, reference.config(tmp_path, eval_batch=2), tmp_path, environment)
    assert ended.codes == [75, 75], ended.errors
    assert "Traceback" not in ended.errors
    _, train_state, warnings = store.latest_valid(RunDir(ended.run))
    assert train_state.step in stopped_at
    assert train_state.evaluated_epochs == 0
    assert warnings == []
    assert f"stopped at step {train_state.step}, state saved" in ended.output
    assert tracked(ended.run)[0] == ["KILLED"]

    resume(ended.run, "training.zero_stage=0")  # on one rank; test_exactness goes on with three at stage 3
    assert difference(ended.run, reference.run) == ""
