"""Measures how far the loss reaches back in time: gradients of the last answer's loss with respect to earlier time steps.

The loss is the cross-entropy of the last segment, the network's answer. Earlier segments reach it through membrane potentials and through
the top-down path alone. "Without feedback" no gradient passes the top-down spikes; the forward pass is the same.

Theorem 4.3 of the paper is about one neuron with a soft reset and a rectangular surrogate of width and height 1 (for threshold 1): the
sensitivity dH(t+1)/dH(t) is 0 within (threshold / 2, 3 threshold / 2), and 1 - 1/tau elsewhere. The network's neurons have a hard reset
that passes no gradient: theirs is 1 - 1/tau below the threshold, and 0 above. Both are measured within the window and outside.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from data_pipelines.errors import UserError
from tdformer.analysis import membranes
from tdformer.analysis.samples import Part
from tdformer.analysis.stage_outputs import StageOutputs
from tdformer.analysis.sums import add_up
from tdformer.distributed.context import DistContext
from tdformer.models.kernels.constants import TAU
from tdformer.models.neurons import LIF, ParametricLIF
from tdformer.models.tdformer import TDFormer

WAYS = ("with feedback", "without feedback")


def measure(model: TDFormer, samples: Iterable[Part], context: DistContext) -> dict[str, Any]:
    """Measure a network. Collective. Returns the same result on all ranks, ready for JSON.

    norms: the mean over images of the norm of dL/dH(t), by stage and time step. Raises UserError for a network of one time step.
    """
    if model.time_steps < 2:
        raise UserError("the network has one time step, so no gradient passes from one to another; leave out time_gradients.")
    outputs = StageOutputs(model)
    ways = WAYS if model.processing is not None and model.segments > 1 else WAYS[1:]
    sums = {way: torch.zeros(len(outputs.names), model.time_steps, dtype=torch.float64) for way in ways}
    neurons = {name: module for name, module in model.named_modules() if isinstance(module, LIF | ParametricLIF)}
    windows, images = Windows(neurons), 0
    for part in samples:
        for way in ways:
            cut = _cut(model) if way == WAYS[1] and model.processing is not None else nullcontext()
            seen = membranes.watched(neurons, windows.add) if way == ways[0] else nullcontext()
            with cut, seen:
                sums[way] += _norms(model, outputs, part).cpu()
        images += len(part.labels_B)
    (count,) = context.all_reduce_sum(torch.tensor([images], dtype=torch.float64)).tolist()
    means = {way: (context.all_reduce_sum(total) / count).tolist() for way, total in sums.items()}
    return {
        "norms": {way: dict(zip(outputs.names, rows, strict=True)) for way, rows in means.items()},
        "theorem": windows.result(context),
    }


def _norms(model: TDFormer, outputs: StageOutputs, part: Part) -> torch.Tensor:
    """Return the norms of dL/dH(t), summed over the images of a batch, [stages, T]."""
    with torch.enable_grad(), outputs.recorded():
        logits_BK = model(part.images)
        segments = outputs.take_segments()
        loss = nn.functional.cross_entropy(logits_BK, part.labels_B, reduction="sum")
    flat = [h_TBCHW for of_stage in segments.values() for h_TBCHW in of_stage]
    gradients = iter(torch.autograd.grad(loss, flat, allow_unused=True))
    rows = []
    for of_stage in segments.values():
        norms = [_norm_T(next(gradients), h_TBCHW) for h_TBCHW in of_stage]
        rows.append(torch.cat(norms))
    return torch.stack(rows)


def _norm_T(gradient_TBCHW: torch.Tensor | None, h_TBCHW: torch.Tensor) -> torch.Tensor:
    if gradient_TBCHW is None:
        return torch.zeros(len(h_TBCHW), dtype=torch.float64, device=h_TBCHW.device)
    return gradient_TBCHW.flatten(2).double().norm(dim=2).sum(1)


@contextmanager
def _cut(model: TDFormer) -> Iterator[None]:
    """Let no gradient pass the top-down spikes."""
    assert model.processing is not None
    hook = model.processing.register_forward_hook(lambda module, inputs, spikes: spikes.detach())
    try:
        yield
    finally:
        hook.remove()


def theorem_sensitivity(h: torch.Tensor, threshold: float) -> torch.Tensor:
    """Return dH(t+1)/dH(t) at potentials h as theorem 4.3 gives it, without feedback."""
    return torch.where(_is_inside(h, threshold), 0.0, 1 - 1 / TAU)


def _is_inside(h: torch.Tensor, threshold: float) -> torch.Tensor:
    return (h > threshold / 2) & (h < 3 * threshold / 2)


def neuron_sensitivity(h: torch.Tensor, threshold: float, charged_share: float) -> torch.Tensor:
    """Return dH(t+1)/dH(t) at potentials h of the network's own neurons, along the membrane. charged_share: 1/tau."""
    return torch.where(h < threshold, 1 - charged_share, 0.0)


class Windows:
    """Counts, by part of the network, how many potentials are within the theorem's window, and adds up sensitivities."""

    def __init__(self, neurons: dict[str, LIF | ParametricLIF]) -> None:
        self._neurons = neurons
        self._sums: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros(4, dtype=torch.float64))

    def add(self, name: str, h_TB: torch.Tensor, threshold: float) -> None:
        inside = _is_inside(h_TB, threshold)
        sensitivity = neuron_sensitivity(h_TB, threshold, membranes.charged_share(self._neurons[name]))
        of_inside, of_all = float((sensitivity * inside).sum()), float(sensitivity.sum())
        self._sums[name] = self._sums[name] + torch.tensor(
            [float(inside.sum()), h_TB.numel(), of_inside, of_all - of_inside], dtype=torch.float64
        )

    def result(self, context: DistContext) -> dict[str, Any]:
        """Return shares, and mean sensitivities by the theorem and of the network's neurons. None where there are no potentials."""
        totals = add_up(self._sums, context)
        inside, count, of_inside, of_outside = torch.stack(list(totals.values())).sum(0).tolist()
        shares = {name: float(total[0] / total[1]) for name, total in totals.items()}
        return {
            "inside_window": inside / count,
            "sensitivity": (1 - inside / count) * (1 - 1 / TAU),
            "measured_inside": of_inside / inside if inside else None,
            "measured_outside": of_outside / (count - inside) if count > inside else None,
            "inside_by_layer": shares,
        }
