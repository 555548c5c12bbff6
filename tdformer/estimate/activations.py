"""Estimates the memory that the activations of one micro-batch take, in seconds and without that memory."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from tdformer.config import RecomputePolicy, RunConfig
from tdformer.training.kernel_choice import are_wanted
from tdformer.training.meta_step import backward, forward, make_model_with_loss, meta_device


@dataclass(frozen=True)
class Activations:
    """Bytes that one micro-batch takes. Its images count; parameters, their gradients and buffers do not."""

    kept: int
    """Bytes that are alive between the forward and the backward pass."""
    peak: int
    """Most bytes that are alive at once: `kept`, the piece that is computed (again), and the gradients of its activations."""


def estimate_activations(config: RunConfig, recompute: RecomputePolicy | None = None, *, device_type: str = "cuda") -> Activations:
    """Estimates the activations of a run on a device of type "cuda" or "cpu", at the run's recompute policy or another one."""
    with meta_device(config.training.precision):
        model_with_loss = make_model_with_loss(config, recompute)
        model_with_loss.model.use_fused_kernels(are_wanted(config.training.kernels, device_type))
        with _LiveBytes(model_with_loss, stacks_steps=device_type == "cpu") as live:
            loss = forward(model_with_loss, config)
            kept = live.now
            backward(loss)
    return Activations(kept, live.peak)


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that are alive, except those of a module's parameters, gradients and buffers.

    stacks_steps: on a CPU, spikingjelly computes LIF neurons step by step and then stacks the steps. They are there twice for a moment.
    """

    def __init__(self, module: nn.Module, stacks_steps: bool) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._stacks_steps = stacks_steps
        gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
        self._known = {tensor.untyped_storage()._cdata for tensor in (*module.parameters(), *module.buffers(), *gradients)}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.peak, before = max(self.peak, self.now), self.now
        result = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._count, result)
        if self._stacks_steps and func.namespace == "sj_lif":
            self.peak = max(self.peak, self.now + self.now - before)
        # Autograd adds gradients in place. Only under a mode such as this one does it make a new tensor, which must not count.
        if torch.is_grad_enabled() or func is not torch.ops.aten.add.Tensor:
            self.peak = max(self.peak, self.now)
        return result

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._known:
            return
        self._known.add(storage._cdata)
        self.now += storage.nbytes()
        weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())

    def _forget(self, address: int, size: int) -> None:
        self._known.discard(address)
        self.now -= size
