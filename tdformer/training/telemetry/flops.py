"""Counts the floating-point operations (FLOPs) of a training step without computing it."""

from __future__ import annotations

from torch.utils.flop_counter import FlopCounterMode

from tdformer.config import RecomputePolicy, RunConfig
from tdformer.training.meta_step import backward, forward, make_model_with_loss, meta_device


def flops_per_image(config: RunConfig, recompute: RecomputePolicy | None = None) -> float:
    """Return the FLOPs of forward and backward pass for one image, at the run's recompute policy or another one.

    A multiplication and the addition after it are two FLOPs. The precision does not change their number.
    """
    with meta_device(), FlopCounterMode(display=False) as counter:
        backward(forward(make_model_with_loss(config, recompute), config))
    return counter.get_total_flops() / config.training.micro_batch
