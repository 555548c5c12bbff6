"""Tells whether a network uses its top-down path: what flows there, and what becomes of its answers when that is replaced.

Replaced is S_td, the top-down spikes, at evaluation only: by nothing, by those of another image, by those of an image of another class,
by random spikes that fire as often, or by spikes everywhere. A path whose content plays a part loses accuracy by every one of them.
Besides, the attentions that S_td controls are silenced in the passes that it controls: it acts through them alone, and can matter no more
than they do.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from data_pipelines.errors import UserError
from tdformer.analysis.estimators.half_samples import NORMAL_95
from tdformer.analysis.propositions import masked_variance_bound, processed_variance
from tdformer.analysis.samples import Part
from tdformer.analysis.sums import add_up
from tdformer.distributed.context import DistContext
from tdformer.models.attention import ControlledAttention
from tdformer.models.feedback import ProcessingModule
from tdformer.models.tdformer import TDFormer

Replacement = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Takes the top-down spikes [T, B, C, H, W] and the labels [B], and returns other spikes."""
NOTHING, OTHER_IMAGE, OTHER_CLASS = "as they are", "of another image", "of another class"
SILENT = "attention silent"


def measure(model: TDFormer, samples: Iterable[Part], context: DistContext) -> dict[str, Any]:
    """Measure the top-down path of a network. Collective. Returns the same result on all ranks, ready for JSON.

    A sample that is alone in its batch is left out of "of another image", and one whose whole batch is of its class out of "of another
    class". Raises UserError for a network without the path.
    """
    if model.processing is None:
        raise UserError("the network has no top-down path; analyse one with feedback, or leave out topdown_use.")
    if model.segments < 2:
        raise UserError("the network has one segment, so its top-down path is never used; leave out topdown_use.")
    generator = torch.Generator(device=context.device).manual_seed(0)
    replacements = {NOTHING: _unchanged, **_replacements(generator)}
    flow, outcomes = Flow(model), defaultdict[str, list[torch.Tensor]](list)
    with torch.no_grad():
        for part in samples:
            generator.manual_seed(int(part.numbers_B[0]))  # a batch gets the same draws on any rank
            answers: dict[str, torch.Tensor] = {}
            for name in (*replacements, SILENT):
                changed = _silenced(model) if name == SILENT else _replaced(model.processing, replacements[name], part.labels_B)
                with changed, flow.watched(name == NOTHING):
                    answers[name] = model(part.images).argmax(1)
                was, now, same = answers[NOTHING] == part.labels_B, answers[name] == part.labels_B, answers[name] == answers[NOTHING]
                counts = torch.ones_like(now)
                if name == OTHER_CLASS:
                    counts = _has_another_class(part.labels_B)
                elif name == OTHER_IMAGE:
                    counts &= len(now) > 1
                outcomes[name].append(torch.stack([counts, was, now, same]).double())
    nobody = torch.zeros(4, 0, dtype=torch.float64, device=context.device)
    found = {name: _answer(torch.cat([nobody, *outcomes[name]], 1), context) for name in (*replacements, SILENT)}
    return flow.result(context) | {"answers": {name: answer for name, answer in found.items() if answer is not None}}


# --- replaced spikes -----------------------------------------------------------------------------------------


def _unchanged(spikes_TBCHW: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
    return spikes_TBCHW


def _replacements(generator: torch.Generator) -> dict[str, Replacement]:
    def random(spikes_TBCHW: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
        rates_T = spikes_TBCHW.flatten(1).mean(1)
        drawn = torch.rand(spikes_TBCHW.shape, generator=generator, device=spikes_TBCHW.device)
        return (drawn < rates_T.view(-1, 1, 1, 1, 1)).to(spikes_TBCHW.dtype)

    return {
        "none": lambda spikes, labels: torch.zeros_like(spikes),
        OTHER_IMAGE: lambda spikes, labels: spikes.roll(1, dims=1),
        OTHER_CLASS: lambda spikes, labels: spikes[:, _of_another_class(labels)],
        "random, as many": random,
        "everywhere": lambda spikes, labels: torch.ones_like(spikes),
    }


def _of_another_class(labels_B: torch.Tensor) -> torch.Tensor:
    """Return for each sample the place of the next one, round the batch, that has another label; its own if there is none."""
    differs = labels_B[:, None] != labels_B[None, :]
    count = len(labels_B)
    distance = (torch.arange(count, device=labels_B.device)[None, :] - torch.arange(count, device=labels_B.device)[:, None]) % count
    nearest = distance.masked_fill(~differs, count).min(1)
    return torch.where(nearest.values < count, nearest.indices, torch.arange(count, device=labels_B.device))


def _has_another_class(labels_B: torch.Tensor) -> torch.Tensor:
    return (labels_B[:, None] != labels_B[None, :]).any(1)


@contextmanager
def _replaced(processing: ProcessingModule, replacement: Replacement, labels_B: torch.Tensor) -> Iterator[None]:
    hook = processing.register_forward_hook(lambda module, inputs, spikes_TBCHW: replacement(spikes_TBCHW, labels_B))
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _silenced(model: TDFormer) -> Iterator[None]:
    """Let the controlled attentions give nothing in those passes in which top-down spikes reach them."""
    with ExitStack() as stack:
        for attention in _controlled(model).values():
            stack.enter_context(_silent_under_control(attention))
        yield


@contextmanager
def _silent_under_control(attention: ControlledAttention) -> Iterator[None]:
    assert attention.control is not None
    controlled: list[bool] = []
    hooks = [
        attention.register_forward_pre_hook(lambda module, inputs: controlled.clear()),
        attention.control.register_forward_hook(lambda module, inputs, output: controlled.append(True)),
        attention.register_forward_hook(lambda module, inputs, output: torch.zeros_like(output) if controlled else output),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _controlled(model: TDFormer) -> dict[str, ControlledAttention]:
    return {
        name: module for name, module in model.named_modules() if isinstance(module, ControlledAttention) and module.control is not None
    }


def _answer(outcomes: torch.Tensor, context: DistContext) -> dict[str, float] | None:
    """Return accuracy, agreement with the unchanged network, and the change of accuracy with its 95 % interval, all in percent.

    outcomes: 0 or 1 for each sample: whether it counts, was right, is right, and has the same answer, [4, samples]. The interval is that
    of a mean of paired differences: each sample is right or wrong with and without the replacement. None if no sample counts.
    """
    counts, was, now, same = outcomes
    change = now - was
    sums = (torch.stack([torch.ones_like(counts), now, same, change, change**2]) * counts).sum(1)
    count, correct, equal, gain, squares = context.all_reduce_sum(sums).tolist()
    if not count:
        return None
    mean = gain / count
    error = NORMAL_95 * math.sqrt(max(squares / count - mean**2, 0.0) / max(count - 1, 1))
    return {
        "samples": count,
        "top1": 100 * correct / count,
        "agreement": 100 * equal / count,
        "change": 100 * mean,
        "change_low": 100 * (mean - error),
        "change_high": 100 * (mean + error),
    }


# --- what flows ----------------------------------------------------------------------------------------------


class Flow:
    """Adds up what flows along the top-down path, from outside the network: spikes, the map and its bounds, currents in each attention."""

    def __init__(self, model: TDFormer) -> None:
        assert model.processing is not None
        self._processing = model.processing
        self._attentions = _controlled(model)
        self._sums: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros(2, dtype=torch.float64))

    @contextmanager
    def watched(self, is_wanted: bool = True) -> Iterator[None]:
        """Add up what flows in the forward pass inside."""
        hooks = list(self._hooks()) if is_wanted else []
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def result(self, context: DistContext) -> dict[str, Any]:
        """Return the means over all ranks. Rates and shares are between 0 and 1."""
        means = {name: float(total / count) if count else 0.0 for name, (total, count) in add_up(self._sums, context).items()}
        return {
            "firing_rate": means["spikes"],
            "clamp": [self._processing.lower, self._processing.upper],
            "map": {place: means[f"map {place}"] for place in ("below", "inside", "above")},
            "variance": _variances(means, self._processing.lower, self._processing.upper),
            "currents": {
                name: {
                    "topdown": (topdown := means[f"topdown {name}"] ** 0.5),
                    "bottom_up": (bottom_up := means[f"bottom-up {name}"] ** 0.5),
                    "ratio": topdown / bottom_up if bottom_up else None,
                }
                for name in self._attentions
            },
        }

    def _hooks(self) -> Iterator[torch.utils.hooks.RemovableHandle]:
        yield self._processing.register_forward_hook(self._spikes_and_map)
        for name, attention in self._attentions.items():
            yield from self._currents(name, attention)

    def _spikes_and_map(self, module: nn.Module, inputs: tuple[Any, ...], spikes_TBCHW: torch.Tensor) -> None:
        self._add("spikes", spikes_TBCHW)
        map_TB1HW = self._processing.spatial_map(inputs[0])
        lower, upper = self._processing.lower, self._processing.upper
        below, above = map_TB1HW < lower, map_TB1HW > upper
        self._add("map below", below)
        self._add("map inside", ~(below | above))
        self._add("map above", above)
        y_TBCHW = inputs[0] * map_TB1HW.clamp(lower, upper)
        for name, values in (("X", inputs[0]), ("Y", y_TBCHW)):
            self._add(name, values)
            self._add(f"{name}²", values.double().square())
        self._add("X > 0", inputs[0] > 0)

    def _currents(self, name: str, attention: ControlledAttention) -> Iterator[torch.utils.hooks.RemovableHandle]:
        """Watch the currents that meet in one attention: W_td S_td, and what it is added to. It computes the former first."""
        control = attention.control
        assert control is not None
        is_controlled = False
        latest_input: list[torch.Tensor] = []

        def enter(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            nonlocal is_controlled
            is_controlled, latest_input[:] = False, [inputs[0]]

        def topdown(module: nn.Module, inputs: object, current: torch.Tensor) -> None:
            nonlocal is_controlled
            is_controlled = True
            self._add(f"topdown {name}", current.square())
            if control.target == "input":
                self._add(f"bottom-up {name}", latest_input[0].square())

        def bottom_up(module: nn.Module, inputs: object, current: torch.Tensor) -> None:
            if is_controlled:
                self._add(f"bottom-up {name}", current.square())

        yield attention.register_forward_pre_hook(enter)
        yield control.register_forward_hook(topdown)
        if control.target != "input":
            layer = {"key": "k", "value": "v"}[control.target]
            yield attention.get_submodule(layer).get_submodule("synapse").register_forward_hook(bottom_up)

    def _add(self, name: str, values: torch.Tensor) -> None:
        self._sums[name] = self._sums[name] + torch.tensor([float(values.double().sum()), values.numel()], dtype=torch.float64)


def _variances(means: dict[str, float], lower: float, upper: float) -> dict[str, float | None]:
    """Return the variances of X and of Y = X clamp(M), and what the paper's propositions say of the latter.

    They are about spikes. A network whose X is a sum of spikes (`X_mean` above `rate`) is outside of them.
    """
    rate = means["X > 0"]
    x_variance, y_variance = (means[f"{name}²"] - means[name] ** 2 for name in ("X", "Y"))
    return {
        "rate": rate,
        "X_mean": means["X"],
        "X_variance": x_variance,
        "Y_variance": y_variance,
        "bound_of_proposition_4_1": masked_variance_bound(rate, upper, lower) if lower >= 0 else None,
        "proposition_b_4": processed_variance(rate) * x_variance,
    }
