"""Batches on a GPU: pinned, copied and normalised there to what the CPU makes of them."""

from __future__ import annotations

import pytest
import torch

from data_pipelines.config import IMAGENET_MEAN, IMAGENET_STD, AugmentConfig
from data_pipelines.loading.batch import Batch
from data_pipelines.loading.mixup import SeededMixup
from data_pipelines.loading.normalisation import Normalisation

pytestmark = pytest.mark.gpu

NORMALISATION = Normalisation(IMAGENET_MEAN, IMAGENET_STD)


def batch() -> Batch:
    """uint8, lying in memory by pixel, as the loaders give it."""
    pixels_BHWC = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Batch(pixels_BHWC.permute(0, 3, 1, 2), torch.arange(4), list("abcd"), NORMALISATION)


@pytest.mark.parametrize("pinned", [False, True])
def test_a_batch_is_normalised_on_the_gpu_as_on_the_cpu(pinned: bool) -> None:
    on_gpu = (batch().pin_memory() if pinned else batch()).to(torch.device("cuda"))
    on_cpu = batch().to(torch.device("cpu"))
    assert on_gpu.images_BCHW.is_contiguous()
    assert on_gpu.labels_B.device.type == "cuda"
    torch.testing.assert_close(on_gpu.images_BCHW.cpu(), on_cpu.images_BCHW, rtol=0, atol=1e-6)


@pytest.mark.parametrize("augment", [AugmentConfig(mixup=0.8), AugmentConfig(cutmix=1.0)])
def test_mixing_draws_alike_on_the_gpu_and_on_the_cpu(augment: AugmentConfig) -> None:
    mixed = {}
    for device in ("cpu", "cuda"):
        moved = batch().to(torch.device(device))
        mixed[device] = SeededMixup(augment, 5)(moved.images_BCHW, moved.labels_B, 1, 2, 3)
    for on_cpu, on_gpu in zip(mixed["cpu"], mixed["cuda"], strict=True):
        torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=0, atol=1e-5)
