"""These tests compare the memory that `tdformer plan` estimates with what two ranks take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.distributed.starter import start_ranks


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_estimated_memory_is_within_15_percent_of_that_measured(tmp_path: Path, stage: int) -> None:
    """Both numbers are the most bytes that the tensors of one rank take. A CPU has no workspaces, so they are left out."""
    ranks = start_ranks(2, "tests.distributed.plan_worker", [stage], tmp_path / "rank", {})
    for rank in ranks:
        assert rank.wait(timeout=300) == 0, rank.output("stderr")
    for reduction, memory in json.loads(ranks[0].output().splitlines()[-1]).items():
        assert memory["planned"] == pytest.approx(memory["measured"], rel=0.15), reduction
