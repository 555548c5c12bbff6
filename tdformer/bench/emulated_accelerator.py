"""Lets a small network take as long as a large one takes on an accelerator: the host sleeps, and its CPU and its network stay free."""

from __future__ import annotations

import time
from functools import partial

import torch
from torch import nn

SHORTEST_SLEEP = 0.01
"""Seconds. Shorter sleeps are added up, because each of them lasts a little too long."""


class EmulatedAccelerator:
    """Sleeps in each forward pass, and in each backward pass where gradients come into being, in proportion to their size."""

    def __init__(self, network: nn.Module, forward_s: float, backward_s: float) -> None:
        """Add hooks to a network. forward_s, backward_s: the seconds of one micro-batch."""
        self._owed = 0.0
        parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        elements = sum(parameter.numel() for parameter in parameters)
        network.register_forward_pre_hook(lambda module, arguments: time.sleep(forward_s))
        for parameter in parameters:
            parameter.register_hook(partial(self._sleep, backward_s * parameter.numel() / elements))

    def _sleep(self, seconds: float, gradient: torch.Tensor) -> None:
        self._owed += seconds
        if self._owed >= SHORTEST_SLEEP:
            start = time.perf_counter()
            time.sleep(self._owed)
            self._owed -= time.perf_counter() - start
