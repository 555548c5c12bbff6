"""Spiking neurons with explicit state, on spikingjelly's kernels."""

from __future__ import annotations

import torch
from spikingjelly.activation_based import functional, surrogate
from torch import nn


class Membranes:
    """The membrane potentials at the borders of one segment, by neuron layer.

    A segment reads `before` and fills `after`; it changes nothing else, so that running it again from the
    same `before` gives the same result. A layer that has no entry in `before` starts at rest (0).
    """

    def __init__(self, before: dict[nn.Module, torch.Tensor] | None = None) -> None:
        self.before = before or {}
        self.after: dict[nn.Module, torch.Tensor] = {}


class LIF(nn.Module):
    """Leaky integrate-and-fire neurons over all time steps of a segment.

    tau 2.0, reset to 0 (hard), input decayed, reset detached, sigmoid surrogate with alpha 4: the
    constants of the public QKFormer code. The potential is fp32 (fp64 for fp64 inputs) at any precision
    of the input.
    """

    tau = 2.0
    v_reset = 0.0
    surrogate = surrogate.Sigmoid(alpha=4.0)

    def __init__(self, v_threshold: float = 1.0) -> None:
        super().__init__()
        self.v_threshold = v_threshold

    def forward(self, x_TB: torch.Tensor, membranes: Membranes) -> torch.Tensor:
        """x_TB: input currents [T, B, …]. Returns spikes (0 or 1) of the same shape and dtype."""
        potential_dtype = torch.float64 if x_TB.dtype == torch.float64 else torch.float32
        v_B = membranes.before.get(self)
        if v_B is None:
            v_B = torch.zeros_like(x_TB[0], dtype=potential_dtype)
        spikes_TB, v_B, _ = functional.lif_multi_step(
            x_TB,
            v_B,
            tau=self.tau,
            decay_input=True,
            v_threshold=self.v_threshold,
            v_reset=self.v_reset,
            surrogate_function=self.surrogate,
            detach_reset=True,
        )
        membranes.after[self] = v_B
        return spikes_TB

    def extra_repr(self) -> str:
        return f"tau={self.tau}, v_threshold={self.v_threshold}"
