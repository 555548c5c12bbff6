"""Bytes that a training step keeps for its backward pass, and the FLOPs that keeping less costs, for every recompute policy.

Two measures of memory. "Saved" is the bytes of the distinct storages that autograd keeps between forward and backward,
without parameters and buffers: a property of the network and the image's size, the same on every machine. "Peak" is
what decides how many images fit: by how much the most that this machine's allocator has given out at once during the step
grows with a second image. It holds the inner tensors of the piece that is being computed again, gradients of activations
and workspaces of kernels; weights and their gradients, which do not grow with the batch, it does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import get_args

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tdformer.bench.peak import peak_bytes
from tdformer.bench.reference import REFERENCE, is_like, make_reference
from tdformer.config import ModelConfig, RecomputePolicy
from tdformer.config.yaml_io import checked
from tdformer.models.tdformer import TDFormer


@dataclass(frozen=True)
class Row:
    """One measurement, of one image in float32."""

    model: str
    policy: str
    time_steps: int
    segments: int
    saved_mb_per_image: float
    """Megabytes (10^6 bytes)."""
    peak_mb_per_image: float | None
    """None if not measured."""
    flops_ratio: float
    """FLOPs of forward and backward pass over those of the same network at policy none."""


def measure(name: str, config: ModelConfig, image_size: int, time_steps: Sequence[int], *, peak: bool = False) -> Iterator[Row]:
    """Every policy at every number of time steps; then, for an ImageNet QKFormer, spikingjelly's own network of that size."""
    unrolled_over = {
        steps: checked(ModelConfig, config.model_dump() | {"time_steps": steps}, f"{name} cannot be unrolled over {steps} time steps")
        for steps in time_steps
    }
    images = torch.randn(2, config.backbone.in_channels, image_size, image_size)
    one = images[:1].clone()  # not a view, whose storage would count for two

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
    if is_like(config):
        for steps in unrolled_over:
            yield row(REFERENCE, "none", steps, 1, partial(make_reference, config, steps), None)[0]


def _forward(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return model.forward_segments(images) if isinstance(model, TDFormer) else model(images)


def saved_and_flops(model: nn.Module, images: torch.Tensor) -> tuple[int, int]:
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def see(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage  # held, so that its address is not given to another one
        return tensor

    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor):
            output = _forward(model, images)
        output.sum().backward()
    return sum(storage.nbytes() for storage in kept.values()), counter.get_total_flops()


def _peak(model: nn.Module, images: torch.Tensor) -> int:
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return peak_bytes(lambda: _forward(model, images).sum().backward(), images.device)
