"""Lets a small network take as long as a large one takes on an accelerator: the host sleeps, and its CPU and its network stay free."""

from __future__ import annotations

import time
from functools import partial

import torch
from torch import nn

from tdformer.training.model_with_loss import ModelWithLoss

SHORTEST_SLEEP = 0.01
"""Seconds. Shorter sleeps are added up, because each of them lasts a little too long."""


class EmulatedAccelerator:
    """Sleeps after each part of the network in the forward pass, and where gradients come into being in the backward pass.

    The sleeps are in proportion to the number of parameters. Segments share their weights: each has its part of the forward pass, and of
    the backward pass, where gradients are complete only in the last one.
    """

    def __init__(self, model_with_loss: ModelWithLoss, forward_s: float, backward_s: float) -> None:
        """Add hooks to a network. forward_s, backward_s: the seconds of one micro-batch."""
        self._owed = 0.0
        model, trained = model_with_loss.model, [parameter for parameter in model_with_loss.parameters() if parameter.requires_grad]
        per_element = 1 / sum(parameter.numel() for parameter in trained)
        units, others = [*model.backbone.bottom_up()[1:], *model.backbone.transform()], 1.0
        for unit in units:
            share = per_element * sum(parameter.numel() for parameter in unit.parameters())
            others -= share
            unit.register_forward_hook(partial(self._after_a_part, forward_s * share / model.segments))
        model_with_loss.register_forward_hook(partial(self._after_a_part, forward_s * others))
        before_gradients_s = backward_s * (model.segments - 1) / model.segments
        model_with_loss.register_forward_hook(partial(self._sleep_when_backward_begins, before_gradients_s))
        for parameter in trained:
            parameter.register_hook(partial(self._in_backward, backward_s / model.segments * per_element * parameter.numel()))

    def _after_a_part(self, seconds: float, module: nn.Module, arguments: object, result: object) -> None:
        self._sleep(seconds)

    def _sleep_when_backward_begins(self, seconds: float, module: nn.Module, arguments: object, loss: torch.Tensor) -> None:
        if loss.requires_grad:
            loss.register_hook(partial(self._in_backward, seconds))

    def _in_backward(self, seconds: float, gradient: torch.Tensor) -> None:
        self._sleep(seconds)

    def _sleep(self, seconds: float) -> None:
        self._owed += seconds
        if self._owed >= SHORTEST_SLEEP:
            start = time.perf_counter()
            time.sleep(self._owed)
            self._owed -= time.perf_counter() - start
