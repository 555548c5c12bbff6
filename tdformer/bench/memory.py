"""Bytes that a training step keeps for its backward pass, and the FLOPs that keeping less costs, for every recompute policy.

Two measures of memory. "Saved" is the bytes of the distinct storages that autograd keeps between forward and backward,
without parameters and buffers: a property of the network and the image's size, the same on every machine. "Peak" is
what decides whether a batch fits: the most that the allocator of this machine's CPU has given out at once during the step,
inner tensors of the unit being computed again, gradients of activations and workspaces of kernels included, weights
and their gradients not.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from tdformer.config import ModelConfig, RecomputePolicy
from tdformer.config_io import checked
from tdformer.models.tdformer import TDFormer

PEER = "spikingjelly-qkformer"


@dataclass(frozen=True)
class Row:
    """One measurement, of one image in float32."""

    model: str
    policy: str
    time_steps: int
    segments: int
    saved_mb_per_image: float
    """Megabytes (10^6 bytes)."""
    peak_mb_per_image: float
    flops_ratio: float
    """FLOPs of forward and backward pass over those of the same network at policy none."""


def measure(name: str, config: ModelConfig, image_size: int, time_steps: Sequence[int]) -> Iterator[Row]:
    """Every policy at every number of time steps; then, for an ImageNet QKFormer, spikingjelly's own network of that size."""
    unrolled_over = {
        steps: checked(ModelConfig, config.model_dump() | {"time_steps": steps}, f"{name} cannot be unrolled over {steps} time steps")
        for steps in time_steps
    }
    for steps, unrolled in unrolled_over.items():
        flops_of_none = 0
        for policy in get_args(RecomputePolicy):
            saved, flops, peak = _measured(partial(TDFormer, unrolled, policy), _image(unrolled, image_size))
            flops_of_none = flops_of_none or flops
            yield Row(name, policy, steps, unrolled.segments, saved / 1e6, peak / 1e6, flops / flops_of_none)
    for steps in time_steps if (config.backbone.family, config.backbone.variant) == ("qkformer", "imagenet") else ():
        saved, _, peak = _measured(partial(_peer, config, steps), _image(config, image_size))
        yield Row(PEER, "none", steps, 1, saved / 1e6, peak / 1e6, 1.0)


def _image(config: ModelConfig, image_size: int) -> torch.Tensor:
    return torch.randn(1, config.backbone.in_channels, image_size, image_size)


def _peer(config: ModelConfig, steps: int) -> nn.Module:
    from spikingjelly.activation_based.model.qkformer import QKFormer

    backbone, (first, second, last) = config.backbone, config.backbone.depths
    heads = (backbone.num_heads,) * 3
    return QKFormer(steps, backbone.in_channels, config.num_classes, backbone.embed_dims, heads, (first, second, last), backbone.mlp_ratio)


def _measured(make: Callable[[], nn.Module], image: torch.Tensor) -> tuple[int, int, int]:
    """-> bytes kept, FLOPs, and most bytes at once: in a step of its own, as counting FLOPs holds tensors longer."""
    return *_saved_and_flops(make(), image), _peak(make(), image)


def _forward(model: nn.Module, image: torch.Tensor) -> torch.Tensor:
    return model.forward_segments(image) if isinstance(model, TDFormer) else model(image)


def _saved_and_flops(model: nn.Module, image: torch.Tensor) -> tuple[int, int]:
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def see(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage  # held, so that its address is not given to another one
        return tensor

    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor):
            output = _forward(model, image)
        output.sum().backward()
    return sum(storage.nbytes() for storage in kept.values()), counter.get_total_flops()


def _peak(model: nn.Module, image: torch.Tensor) -> int:
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        _forward(model, image).sum().backward()
    kineto: Any = profiler.profiler
    events = [event for event in kineto.kineto_results.events() if event.name() == "[memory]"]
    allocations = sorted((event.start_ns(), event.nbytes()) for event in events)
    return max(itertools.accumulate(size for _, size in allocations))
