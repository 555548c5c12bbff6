"""The memory that `tdformer plan` estimates, and what one, two and four ranks take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.distributed.starter import start_ranks

ALWAYS_SHARDED = [f"{reduction} {stage}" for reduction, stage in (("exact", 2), ("fast", 2), ("exact", 3))]


@pytest.mark.slow
def test_estimated_memory_is_within_15_percent_of_that_measured_and_shrinks_with_ranks(tmp_path: Path) -> None:
    """Both numbers are the most bytes that the tensors of one rank take. A CPU has no workspaces, so they are left out."""
    memory = {ranks: measured_on(ranks, tmp_path / str(ranks)) for ranks in (1, 2, 4)}
    for ranks, cases in memory.items():
        for name, case in cases.items():
            assert case["planned"] == pytest.approx(case["measured"], rel=0.15), (name, ranks)
    for name in ALWAYS_SHARDED:
        one, two, four = (memory[ranks][name] for ranks in (1, 2, 4))
        # Gradients, sums and moments are halved with each doubling. Of all that is measured, they are the part that shrinks.
        assert four["planned_state"] < 0.65 * two["planned_state"] < 0.65**2 * one["planned_state"], name
        for more, fewer in ((one, two), (two, four)):
            saved = more["planned_state"] - fewer["planned_state"]
            assert more["measured"] - fewer["measured"] > 0.5 * saved, name


def measured_on(ranks: int, folder: Path) -> dict[str, dict[str, int]]:
    folder.mkdir()
    started = start_ranks(ranks, "tests.distributed.plan_worker", [], folder / "rank", {})
    for rank in started:
        assert rank.wait(timeout=500) == 0, rank.output("stderr")
    return json.loads(started[0].output().splitlines()[-1])
