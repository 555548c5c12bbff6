"""On a GPU: SyncBatchNorm makes one batch of all ranks' micro-batches, and fp16 with a loss scale gives fp32's gradients, nearly."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tdformer.distributed.launch_environment import free_port
from tdformer.training.model_with_loss import ModelWithLoss
from tests.unit.networks import images, lively, small

pytestmark = pytest.mark.gpu
WORLD = 2


def trained(recompute: str, own: slice, *, synced: bool) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model_with_loss = lively(ModelWithLoss(small(), label_smoothing=0.1, recompute=recompute)).cuda()  # type: ignore[arg-type]
    if synced:
        model_with_loss = nn.SyncBatchNorm.convert_sync_batchnorm(model_with_loss)
    model_with_loss(images(8, 64, 64)[own].cuda(), (torch.arange(8) % 5)[own].cuda()).backward()
    gradients = {name: parameter.grad.cpu() for name, parameter in model_with_loss.named_parameters() if parameter.grad is not None}
    return gradients | {name: buffer.cpu() for name, buffer in model_with_loss.named_buffers()}


def run_rank(rank: int, port: int, recompute: str, folder: Path) -> None:
    """gloo, so that both ranks can have the one GPU."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=WORLD)
    torch.save(trained(recompute, slice(rank * 4, rank * 4 + 4), synced=True), folder / str(rank))
    dist.destroy_process_group()


@pytest.mark.parametrize("recompute", ["none", "block_segment"])
def test_synced_statistics_are_those_of_the_whole_batch(recompute: str, tmp_path: Path) -> None:
    torch.multiprocessing.spawn(run_rank, (free_port(), recompute, tmp_path), nprocs=WORLD)
    ranks = [torch.load(tmp_path / str(rank)) for rank in range(WORLD)]
    whole = trained("none", slice(None), synced=False)
    assert any("running_var" in name for name in whole)
    for name, expected in whole.items():
        if "running" in name:
            assert torch.equal(ranks[0][name], ranks[1][name])
            torch.testing.assert_close(ranks[0][name], expected, rtol=1e-3, atol=1e-4)


def test_fp16_with_a_loss_scale_has_the_gradients_of_fp32() -> None:
    gradients = {}
    for precision, scale in (("fp32", 1.0), ("fp16", 2.0**12)):
        torch.manual_seed(0)
        model_with_loss = lively(ModelWithLoss(small(), label_smoothing=0.1, precision=precision)).cuda()  # type: ignore[arg-type]
        (model_with_loss(images(8, 64, 64).cuda(), (torch.arange(8) % 5).cuda()) * scale).backward()
        gradients[precision] = torch.cat([p.grad.flatten() / scale for p in model_with_loss.parameters() if p.grad is not None])
    assert gradients["fp16"].isfinite().all()
    assert torch.cosine_similarity(gradients["fp16"], gradients["fp32"], dim=0) > 0.9
