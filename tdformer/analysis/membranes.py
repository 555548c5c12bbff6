"""Records the membrane potentials of neurons just before they fire or not, from outside the network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from tdformer.models.kernels.constants import TAU, V_RESET
from tdformer.models.neurons import LIF, ParametricLIF

THRESHOLD_OF_PARAMETRIC = 1.0
Watcher = Callable[[str, torch.Tensor, float], object]
"""Takes the name of a layer, its potentials [T, B, …] at the steps of one segment, and its threshold."""


@contextmanager
def watched(neurons: dict[str, LIF | ParametricLIF], watcher: Watcher) -> Iterator[None]:
    """Call `watcher` for each pass of these layers inside. The pass itself is not changed."""

    def watching(name: str) -> Any:
        def watch(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            assert isinstance(module, LIF | ParametricLIF)
            watcher(name, potentials(module, *inputs), threshold(module))

        return watch

    hooks = [module.register_forward_pre_hook(watching(name)) for name, module in neurons.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def threshold(neurons: LIF | ParametricLIF) -> float:
    return neurons.v_threshold if isinstance(neurons, LIF) else THRESHOLD_OF_PARAMETRIC


def charged_share(neurons: LIF | ParametricLIF) -> float:
    """Return 1/tau, the share of the current that a step takes in."""
    return float(torch.sigmoid(neurons.w.detach())) if isinstance(neurons, ParametricLIF) else 1 / TAU


@torch.no_grad()
def potentials(neurons: LIF | ParametricLIF, x_TB: torch.Tensor, neuron_state: Any, norm: nn.Module | None = None) -> torch.Tensor:
    """Return the potentials that the currents x [T, B, …] charge, before each reset. The arguments are those of the neurons' forward.

    H(t) = V(t-1) + (x(t) - V(t-1)) / tau, and V(t) = H(t), or 0 after a spike.
    """
    if norm is not None:
        x_TB = norm(x_TB.flatten(0, 1)).unflatten(0, x_TB.shape[:2])
    share = charged_share(neurons)
    before = neuron_state.before.get(neurons)
    v_B = torch.zeros_like(x_TB[0]) if before is None else before
    charged = []
    for x_B in x_TB:
        h_B = v_B + (x_B - (v_B - V_RESET)) * share
        charged.append(h_B)
        v_B = torch.where(h_B >= threshold(neurons), V_RESET, h_B)
    return torch.stack(charged)
