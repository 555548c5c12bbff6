"""Recompute under DeepSpeed: the same bits as without it, at every ZeRO stage."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY
from tests.distributed.recompute_worker import NETWORKS

POLICIES = ("segment", "block", "block_segment")


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_policy_trains_to_the_same_bits(stage: int) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(29610 + stage)]
    result = subprocess.run(
        [*launcher, "-m", "tests.distributed.recompute_worker", str(stage)],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    expected = {f"rank {rank} {network} {policy}: same" for rank, network, policy in itertools.product((0, 1), NETWORKS, POLICIES)}
    assert expected <= set(result.stdout.splitlines()), result.stdout
