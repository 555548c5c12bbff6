"""Recompute under DeepSpeed: the same bits as without it, at every ZeRO stage."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from tests.distributed.recompute_worker import NETWORKS
from tests.distributed.starter import start_ranks

POLICIES = ("segment", "block", "block_segment")


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_policy_trains_to_the_same_bits(tmp_path: Path, stage: int) -> None:
    processes = start_ranks(2, "tests.distributed.recompute_worker", [stage], tmp_path / "rank", {})
    for rank, process in enumerate(processes):
        assert process.wait(timeout=500) == 0, process.output("stderr")
        expected = {f"rank {rank} {network} {policy}: same" for network, policy in itertools.product(NETWORKS, POLICIES)}
        assert expected <= set(process.output().splitlines()), process.output()
