"""Measures the memory and the FLOPs of a training step under every recompute policy.

There are two measures of memory:

- *Saved* bytes are those of the distinct storages that autograd keeps between forward and backward pass, without parameters and
  buffers. They depend on the network and the image size alone, so they are the same on every machine.
- *Peak* bytes decide how many images fit. They are the growth of the step's peak allocation on this machine when a second image
  is added. They include the inner tensors of the part that is being recomputed, gradients of activations and workspaces of
  kernels. Weights and their gradients do not grow with the batch, so they are not included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import get_args

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tdformer.bench.peak_memory import peak_bytes
from tdformer.bench.reference import REFERENCE, has_reference, make_reference
from tdformer.config import ModelConfig, RecomputePolicy
from tdformer.config.yaml_io import checked
from tdformer.models.tdformer import TDFormer


@dataclass(frozen=True)
class Row:
    """One measurement of one image in float32. Megabytes are 10^6 bytes."""

    model: str
    policy: str
    time_steps: int
    segments: int
    saved_mb_per_image: float
    peak_mb_per_image: float | None
    """None where the peak was not measured."""
    flops_ratio: float
    """FLOPs of forward and backward pass, divided by those of the same network under the policy `none`."""


def measure(name: str, config: ModelConfig, image_size: int, time_steps: Sequence[int], *, peak: bool = False) -> Iterator[Row]:
    """Yield one row per number of time steps and recompute policy. For an ImageNet QKFormer, rows of the reference network follow.

    Raises ConfigError if the network cannot be unrolled over one of `time_steps`, before anything is measured.
    """
    unrolled_over = {
        steps: checked(ModelConfig, config.model_dump() | {"time_steps": steps}, f"{name} cannot be unrolled over {steps} time steps")
        for steps in time_steps
    }
    images = torch.randn(2, config.backbone.in_channels, image_size, image_size)
    one = images[:1].clone()  # A view would hold the storage of both images.

    def row(
        model: str, policy: str, steps: int, segments: int, make: Callable[[], nn.Module], flops_of_none: int | None
    ) -> tuple[Row, int]:
        saved, flops = saved_and_flops(make(), one)
        grown = (_peak(make(), images) - _peak(make(), one)) / 1e6 if peak else None
        return Row(model, policy, steps, segments, saved / 1e6, grown, flops / (flops_of_none or flops)), flops

    for steps, unrolled in unrolled_over.items():
        flops_of_none = None
        for policy in get_args(RecomputePolicy):
            measured, flops = row(name, policy, steps, unrolled.segments, partial(TDFormer, unrolled, policy), flops_of_none)
            flops_of_none = flops_of_none or flops
            yield measured
    if has_reference(config):
        for steps in unrolled_over:
            yield row(REFERENCE, "none", steps, 1, partial(make_reference, config, steps), None)[0]


def _forward(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return model.forward_segments(images) if isinstance(model, TDFormer) else model(images)


def saved_and_flops(model: nn.Module, images: torch.Tensor) -> tuple[int, int]:
    """Return the bytes that autograd saves for the backward pass, and the FLOPs of both passes. images: [B, C, H, W], float32."""
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage  # Holding the storage keeps its address from being reused.
        return tensor

    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = _forward(model, images)
        output.sum().backward()
    return sum(storage.nbytes() for storage in kept.values()), counter.get_total_flops()


def _peak(model: nn.Module, images: torch.Tensor) -> int:
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return peak_bytes(lambda: _forward(model, images).sum().backward(), images.device)
