"""Recompute under DeepSpeed: the same bits as without it, at every ZeRO stage."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from tests.distributed.recompute_worker import NETWORKS, POLICIES, pairs
from tests.distributed.starter import start_ranks

STAGES = (0, 1, 2, 3)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_every_policy_trains_to_the_same_bits(tmp_path: Path, stage: int) -> None:
    processes = start_ranks(2, "tests.distributed.recompute_worker", [stage], tmp_path / "rank", {})
    for rank, process in enumerate(processes):
        assert process.wait(timeout=500) == 0, process.output("stderr")
        expected = {f"rank {rank} {network} {policy}: same" for network, policy in pairs(stage)}
        assert expected <= set(process.output().splitlines()), process.output()


def test_every_pair_of_stage_network_and_policy_is_tried() -> None:
    tried = [(stage, network, policy) for stage in STAGES for network, policy in pairs(stage)]
    assert {(stage, network) for stage, network, _ in tried} == set(itertools.product(STAGES, NETWORKS))
    assert {(stage, policy) for stage, _, policy in tried} == set(itertools.product(STAGES, POLICIES))
    assert {(network, policy) for _, network, policy in tried} == set(itertools.product(NETWORKS, POLICIES))
