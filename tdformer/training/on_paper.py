"""One micro-batch of a run on the `meta` device: what it would compute and allocate, found in seconds and without its memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from tdformer.config import RecomputePolicy, RunConfig
from tdformer.training.kernel_choice import are_wanted
from tdformer.training.model_with_loss import ModelWithLoss


@dataclass(frozen=True)
class Activations:
    """Bytes of one micro-batch, its images included; without parameters, their gradients and buffers."""

    kept: int
    """Alive between the forward and the backward pass."""
    peak: int
    """The most that is alive at once: kept, plus the piece that is computed (again) and the gradients of its activations."""


def activations_on_paper(config: RunConfig, recompute: RecomputePolicy | None = None, *, device_type: str = "cuda") -> Activations:
    """Of a run, at its own recompute policy or another one. On a CPU spikingjelly computes LIF neurons step by step and stacks the
    steps, which are there twice for that moment.
    """
    with torch.device("meta"), _autocast(config.training.precision):
        model_with_loss = _model_with_loss(config, recompute)
        model_with_loss.model.use_fused_kernels(are_wanted(config.training.kernels, device_type))
        with LiveBytes(model_with_loss, stacks_steps=device_type == "cpu") as live:
            loss = _forward(model_with_loss, config)
            kept = live.now
            loss.backward()
    return Activations(kept, live.peak)


def flops_on_paper(config: RunConfig, recompute: RecomputePolicy | None = None) -> float:
    """Of forward and backward pass, per image."""
    # Not together with LiveBytes: the counter holds on to tensors.
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        _forward(_model_with_loss(config, recompute), config).backward()
    return counter.get_total_flops() / config.training.micro_batch


def _model_with_loss(config: RunConfig, recompute: RecomputePolicy | None) -> ModelWithLoss:
    model_with_loss = ModelWithLoss(config.model, config.training.label_smoothing, recompute or config.training.recompute)
    for parameter in model_with_loss.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return model_with_loss


def _forward(model_with_loss: ModelWithLoss, config: RunConfig) -> torch.Tensor:
    size, batch, channels = config.data.image_size, config.training.micro_batch, config.model.backbone.in_channels
    frames = (config.model.time_steps,) if channels == 2 else ()
    return model_with_loss(torch.zeros(*frames, batch, channels, size, size), torch.zeros(batch, dtype=torch.int64))


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that are alive, those of a module's parameters, gradients and buffers left out."""

    def __init__(self, module: nn.Module, stacks_steps: bool = False) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._stacks_steps = stacks_steps
        gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
        self._known = {tensor.untyped_storage()._cdata for tensor in (*module.parameters(), *module.buffers(), *gradients)}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.peak, before = max(self.peak, self.now), self.now
        result = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._see, result)
        if self._stacks_steps and func.namespace == "sj_lif":
            self.peak = max(self.peak, self.now + self.now - before)
        # Where autograd adds up gradients it writes into the first of them, unless a mode such as this one is on.
        if torch.is_grad_enabled() or func is not torch.ops.aten.add.Tensor:
            self.peak = max(self.peak, self.now)
        return result

    def _see(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._known:
            return
        self._known.add(storage._cdata)
        self.now += storage.nbytes()
        weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())

    def _forget(self, address: int, size: int) -> None:
        self._known.discard(address)
        self.now -= size


@contextmanager
def _autocast(precision: str) -> Iterator[None]:
    """What autocast does on a GPU to the bytes and FLOPs of this network; autocast itself does not know the meta device."""
    maps = [(nn.functional, name) for name in ("conv1d", "conv2d", "linear")] + [(torch.Tensor, "__matmul__")]
    originals = [getattr(owner, name) for owner, name in maps]
    if precision != "fp32":
        for (owner, name), original in zip(maps, originals, strict=True):
            setattr(owner, name, partial(_in_bfloat16, original) if owner is nn.functional else _matmul_in_bfloat16)
    try:
        yield
    finally:
        for (owner, name), original in zip(maps, originals, strict=True):
            setattr(owner, name, original)


def _in_bfloat16(function: Callable, *args: Any, **kwargs: Any) -> torch.Tensor:
    args, kwargs = tree_map_only(torch.Tensor, torch.Tensor.bfloat16, (args, kwargs))
    return function(*args, **kwargs)


def _matmul_in_bfloat16(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return torch.matmul(left.bfloat16(), right.bfloat16())
