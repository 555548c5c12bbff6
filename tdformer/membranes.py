"""The state that links the segments of a pass: membrane potentials, explicit and apart from the network."""

from __future__ import annotations

import torch
from torch import nn


class Membranes:
    """The membrane potentials at the borders of one segment, by neuron layer.

    A segment reads `before` and fills `after`; it changes nothing else, so that running it again from the
    same `before` gives the same result. A layer that has no entry in `before` starts at rest (0).
    """

    def __init__(self, before: dict[nn.Module, torch.Tensor] | None = None, *, handed_on: bool = True) -> None:
        self.before = before or {}
        self.after: dict[nn.Module, torch.Tensor] = {}
        self.handed_on = handed_on
        """Whether a segment follows that goes on from `after`; it stays empty otherwise."""
        self.started: list[nn.Module] = []
        """The layers that ran, in their order."""

    def start(self, neurons: nn.Module, x_TB: torch.Tensor) -> torch.Tensor:
        """The potential with which a layer starts: fp32 (fp64 for fp64 currents) at any precision of its currents."""
        self.started.append(neurons)
        v_B = self.before.get(neurons)
        if v_B is None:
            v_B = torch.zeros_like(x_TB[0], dtype=torch.promote_types(x_TB.dtype, torch.float32))
        return v_B

    def leave(self, neurons: nn.Module, v_B: torch.Tensor) -> None:
        """The potential with which a layer ends."""
        if self.handed_on:
            self.after[neurons] = v_B
