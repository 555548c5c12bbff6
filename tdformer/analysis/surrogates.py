"""Measures the surrogate gradients of the neurons in the attentions under top-down control, with and without the clamp [paper figure 3].

The surrogate is the derivative of a sigmoid of steepness alpha, relative to its peak: 4 s (1 - s), s = sigmoid(alpha (H - threshold)),
at the membrane potential H. A neuron far from its threshold has hardly any gradient. "Without the clamp" is the same network, not
trained again, whose spatial map M is not clamped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from data_pipelines.errors import UserError
from tdformer.analysis import membranes
from tdformer.analysis.samples import Part
from tdformer.analysis.sums import add_up
from tdformer.distributed.context import DistContext
from tdformer.models.attention import ControlledAttention
from tdformer.models.kernels.constants import ALPHA
from tdformer.models.neurons import LIF, ParametricLIF
from tdformer.models.tdformer import TDFormer

BINS = 50
DEAD = 0.01
"""Share of the peak below which a gradient counts as gone."""


def measure(model: TDFormer, samples: Iterable[Part], context: DistContext) -> dict[str, Any]:
    """Measure a network with top-down path. Collective. Returns the same result on all ranks, ready for JSON.

    A histogram holds shares of all neurons and time steps, over BINS equal parts of 0 … 1. Raises UserError without a top-down path.
    """
    processing = model.processing
    if processing is None:
        raise UserError("the network has no top-down path, and so no clamp; analyse one with feedback, or leave out surrogates.")
    neurons = controlled_neurons(model)
    clamped, free = Histogram(), Histogram()
    with torch.no_grad():
        for part in samples:
            with membranes.watched(neurons, clamped.add):
                model(part.images)
            with _without_clamp(model), membranes.watched(neurons, free.add):
                model(part.images)
    return {"clamped": clamped.result(context), "unclamped": free.result(context), "clamp": [processing.lower, processing.upper]}


def controlled_neurons(model: TDFormer) -> dict[str, LIF | ParametricLIF]:
    """Return the neurons in attentions under top-down control, and those that make the top-down spikes, by name."""
    inside = [name for name, module in model.named_modules() if isinstance(module, ControlledAttention) and module.control is not None]
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LIF | ParametricLIF) and (name.startswith("processing.") or any(name.startswith(f"{at}.") for at in inside))
    }


def relative_gradient(h: torch.Tensor, threshold: float) -> torch.Tensor:
    """Return the surrogate gradient at potentials h, as a share of its peak."""
    s = torch.sigmoid(ALPHA * (h - threshold))
    return 4 * s * (1 - s)


@contextmanager
def _without_clamp(model: TDFormer) -> Iterator[None]:
    processing = model.processing
    assert processing is not None
    bounds = processing.lower, processing.upper
    processing.lower, processing.upper = float("-inf"), float("inf")
    try:
        yield
    finally:
        processing.lower, processing.upper = bounds


class Histogram:
    """Counts surrogate gradients by layer."""

    def __init__(self) -> None:
        self._bins: dict[str, torch.Tensor] = {}
        self._dead: dict[str, torch.Tensor] = {}

    def add(self, name: str, h_TB: torch.Tensor, threshold: float) -> None:
        gradient = relative_gradient(h_TB.float(), threshold)
        bins = torch.histc(gradient, BINS, 0, 1).double().cpu()
        dead = (gradient < DEAD).sum(dtype=torch.float64).cpu()
        self._bins[name] = self._bins[name] + bins if name in self._bins else bins
        self._dead[name] = self._dead[name] + dead if name in self._dead else dead

    def result(self, context: DistContext) -> dict[str, Any]:
        """Return the histogram of all layers, and the share of dead gradients in each."""
        bins, dead = add_up(self._bins, context), add_up(self._dead, context)
        of_all = torch.stack(list(bins.values())).sum(0)
        return {
            "histogram": (of_all / of_all.sum()).tolist(),
            "dead": float(sum(dead.values()) / of_all.sum()),
            "dead_by_layer": {name: float(dead[name] / of_layer.sum()) for name, of_layer in bins.items()},
        }
