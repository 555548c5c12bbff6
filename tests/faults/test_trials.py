"""A handful of the SIGKILL trials; `make test-faults` does sixty."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.kills import KINDS
from tests.faults.trials import run_trial
from tests.runs import ReferenceRun

SEED = 1


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 5, 7, 11], ids=lambda number: " ".join(KINDS[number]).replace(" ", "-"))
def test_a_killed_run_ends_as_if_nothing_had_happened(reference_for_three: ReferenceRun, tmp_path: Path, number: int) -> None:
    trial = run_trial(reference_for_three, tmp_path / "trial", SEED, number)
    assert trial.kills, trial.attempts
    assert not trial.lost, (trial.lost, trial.attempts)
