"""Runs as jobs of a real Slurm on two nodes: whatever ends a job, the run comes back and ends with the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.slurm.jobs import Jobs

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


@pytest.fixture(scope="module")
def reference(jobs: Jobs) -> Path:
    """Of a job that nothing disturbs."""
    submitted = jobs.submit(jobs.config("reference"))
    jobs.cluster.wait(submitted["job"], "COMPLETED")
    return Path(submitted["runs"][0])


def test_a_run_on_two_nodes(reference: Path) -> None:
    log = next((reference / "slurm").glob("*.out")).read_text()
    print(log)
    assert "2 ranks" in log
