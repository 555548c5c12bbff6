"""The state that links the segments of a pass: membrane potentials, explicit and apart from the network."""

from __future__ import annotations

import torch
from torch import nn


class NeuronState:
    """The membrane potentials at the borders of one segment, by neuron layer.

    A segment reads `before` and fills `after`; it changes nothing else, so that running it again from the
    same `before` gives the same result. A layer that has no entry in `before` starts at rest (0).
    """

    def __init__(self, before: dict[nn.Module, torch.Tensor] | None = None, *, carried: bool = True) -> None:
        self.before = before or {}
        self.after: dict[nn.Module, torch.Tensor] = {}
        self.carried = carried
        """Whether a segment follows that goes on from `after`; it stays empty otherwise."""
        self.started: list[nn.Module] = []
        """The layers that ran, in their order."""

    def start(self, neurons: nn.Module) -> torch.Tensor | None:
        """The potential with which a layer starts; None: at rest."""
        self.started.append(neurons)
        return self.before.get(neurons)

    def leave(self, neurons: nn.Module, v_B: torch.Tensor | None) -> None:
        """The potential with which a layer ends; None is taken if nobody goes on from it."""
        if self.carried:
            assert v_B is not None
            self.after[neurons] = v_B


def zero_potentials(x_TB: torch.Tensor) -> torch.Tensor:
    """The potentials of neurons with these currents before any: 0, fp32 (fp64 for fp64 currents) at any precision of the currents."""
    return torch.zeros_like(x_TB[0], dtype=torch.promote_types(x_TB.dtype, torch.float32))
