"""On a GPU: pytest -m gpu. The networks run there, recompute saves memory there, and gives what it gives without."""

from __future__ import annotations

import pytest
import torch

from tdformer.models import create_model
from tdformer.training.model_with_loss import ModelWithLoss
from tests.unit.networks import BACKBONES, IMAGE_SIZE, images, lively, small

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("policy", ["segment", "block", "block_segment"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_recompute_gives_the_same_loss_gradients_and_statistics(backbone: str, policy: str, autocast: bool) -> None:
    """Equal up to the order in which CUDA's kernels add: the forward pass has none that differ, the backward pass may."""
    results = []
    for own in ("none", policy):
        torch.manual_seed(0)
        config = small(BACKBONES[backbone].model_copy(update={"drop_path": 0.3}))
        model_with_loss = ModelWithLoss(config, label_smoothing=0.1, recompute=own).cuda()  # type: ignore[arg-type]
        lively(model_with_loss)
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            loss = model_with_loss(images(4, IMAGE_SIZE[backbone], IMAGE_SIZE[backbone]).cuda(), torch.arange(4).cuda())
        loss.backward()
        results.append((loss, [p.grad for p in model_with_loss.parameters() if p.grad is not None], list(model_with_loss.buffers())))
    (loss, gradients, buffers), (other_loss, other_gradients, other_buffers) = results
    assert torch.equal(loss, other_loss)
    assert all(torch.equal(one, other) for one, other in zip(buffers, other_buffers, strict=True))
    for one, other in zip(gradients, other_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2 if autocast else 1e-4, atol=1e-2 if autocast else 1e-5)


def test_block_segment_needs_less_than_half_of_the_peak_memory() -> None:
    peaks = {}
    for policy in ("none", "block_segment"):
        torch.manual_seed(0)
        model = create_model("tdformer_hst10_384", recompute=policy).cuda()  # type: ignore[arg-type]
        x = images(8, 224, 224).cuda()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        model.forward_segments(x).sum().backward()
        peaks[policy] = torch.cuda.max_memory_allocated() - before
    assert peaks["block_segment"] < peaks["none"] / 2
