"""The memory and the bytes sent that `tdformer plan` estimates, and what one, two and four ranks take and send."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.starter import start_ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # seven ranks train 24 networks, on a machine that may be busy

ALWAYS_SHARDED = [f"{reduction} {stage}" for reduction, stage in (("exact", 2), ("fast", 2), ("exact", 3))]


COLLECTIVES = {
    "all_gather": "all_gather_into_tensor",
    "all_reduce": "all_reduce",
    "reduce_scatter": "reduce_scatter_tensor",
    "all_to_all": "all_to_all_single",
    "reduce": "reduce",
}
"""torch's names by the end of a purpose, longer ends first."""


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """Return what the worker printed, by number of ranks, then by reduction and ZeRO stage."""
    return {ranks: measured_on(ranks, tmp_path_factory.mktemp(f"ranks{ranks}")) for ranks in (1, 2, 4)}


def test_estimated_memory_is_within_15_percent_of_that_measured_and_shrinks_with_ranks(measured: dict[int, dict[str, Any]]) -> None:
    """Both numbers are the most bytes that the tensors of one rank take, without workspaces.

    A convolution's workspace depends on the instructions of the CPU. It is what the simplest case takes beyond its estimate.
    """
    simplest = measured[1]["fast 0"]
    assert simplest["planned"] == pytest.approx(simplest["measured"], rel=0.15)
    workspaces = simplest["measured"] - simplest["planned"]
    for ranks, cases in measured.items():
        for name, case in cases.items():
            if name != "fast 3 bf16":  # see plan_worker.NOT_MEASURED
                assert case["planned"] == pytest.approx(case["measured"] - workspaces, rel=0.15), (name, ranks)
    for name in ALWAYS_SHARDED:
        one, two, four = (measured[ranks][name] for ranks in (1, 2, 4))
        # Gradients, sums and moments are halved with each doubling. Of all that is measured, they are the part that shrinks.
        assert four["planned_state"] < 0.65 * two["planned_state"] < 0.65**2 * one["planned_state"], name
        for more, fewer in ((one, two), (two, four)):
            saved = more["planned_state"] - fewer["planned_state"]
            assert more["measured"] - fewer["measured"] > 0.5 * saved, name


def test_estimated_traffic_is_that_counted(measured: dict[int, dict[str, Any]]) -> None:
    """Padding, norms and flags are all that a step sends besides."""
    for name, case in measured[2].items():
        # At ZeRO 1 and 2, parameters are gathered by broadcasts of their owners.
        case["sent"]["all_gather_into_tensor"] = case["sent"].get("all_gather_into_tensor", 0) + case["sent"].pop("broadcast", 0)
        planned = dict.fromkeys(case["sent"], 0)
        for purpose, sent in case["planned_sent"].items():
            collective = next(own for end, own in COLLECTIVES.items() if purpose.endswith(end))
            planned[collective] = planned.get(collective, 0) + sent
        for collective, sent in planned.items():
            assert sent == pytest.approx(case["sent"].get(collective, 0), rel=0.02, abs=2000), (name, collective)


def measured_on(ranks: int, folder: Path) -> dict[str, Any]:
    started = start_ranks(ranks, "tests.distributed.plan_worker", [], folder / "rank", {})
    for rank in started:
        assert rank.wait(timeout=500) == 0, rank.output("stderr")
    return json.loads(started[0].output().splitlines()[-1])
