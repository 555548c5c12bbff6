"""These tests train twice on a GPU with deterministic kernels, and expect the same bits."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.gpu

PROGRAM = """
import hashlib
import torch
from tdformer.training.kernel_choice import use_deterministic_kernels
from tdformer.training.model_with_loss import ModelWithLoss
from tests.unit.networks import images, lively, small

use_deterministic_kernels()
torch.manual_seed(0)
model_with_loss = lively(ModelWithLoss(small(), 0.1, "block_segment", "bf16")).cuda()
if {fused}:
    model_with_loss.model.use_fused_kernels()
for _ in range(3):
    model_with_loss(images(32, 64, 64).cuda(), (torch.arange(32) % 5).cuda()).backward()
bits = b"".join(parameter.grad.cpu().numpy().tobytes() for parameter in model_with_loss.parameters() if parameter.grad is not None)
print(hashlib.sha256(bits).hexdigest())
"""


@pytest.mark.parametrize("fused", [False, True])
def test_two_processes_make_the_same_gradients(fused: bool) -> None:
    command = [sys.executable, "-c", PROGRAM.format(fused=fused)]
    printed = {subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1] for _ in range(2)}
    assert len(printed) == 1
