"""NeuronState: the membrane potentials that link the segments of a pass, kept apart from the network."""

from __future__ import annotations

import torch
from torch import nn


class NeuronState:
    """Holds the membrane potentials at the two borders of one segment, by neuron layer.

    A segment reads `before` and fills `after`, and changes nothing else. So a second run from the same `before` gives the same result. A
    layer without an entry in `before` starts at 0.
    """

    def __init__(self, before: dict[nn.Module, torch.Tensor] | None = None, *, carried: bool = True) -> None:
        self.before = before or {}
        self.after: dict[nn.Module, torch.Tensor] = {}
        self.carried = carried
        """True if a segment follows that goes on from `after`. Otherwise `after` stays empty."""
        self.started: list[nn.Module] = []
        """The layers that ran, in this order."""

    def start(self, neurons: nn.Module) -> torch.Tensor | None:
        """Return the potential [B, …] with which a layer starts, or None for 0."""
        self.started.append(neurons)
        return self.before.get(neurons)

    def leave(self, neurons: nn.Module, v_B: torch.Tensor | None) -> None:
        """Take the potential [B, …] with which a layer ends. It may be None if no segment goes on from it."""
        if self.carried:
            assert v_B is not None
            self.after[neurons] = v_B


def zero_potentials(x_TB: torch.Tensor) -> torch.Tensor:
    """Return the potentials [B, …] of neurons before the first current: zeros, fp32, or fp64 for fp64 currents."""
    return torch.zeros_like(x_TB[0], dtype=torch.promote_types(x_TB.dtype, torch.float32))
