"""Where the time of a training step goes, by kind of operation: convolution, BatchNorm, LIF neurons, attention …

Modules say of which kind they are: while they run, what torch's profiler records is marked with their kind. What the backward pass
does is of the kind of the forward operation that it belongs to, which the profiler tells by sequence numbers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from spikingjelly.activation_based.layer.attention import QKAttention
from spikingjelly.activation_based.layer.attention import SpikingSelfAttention as PeerSelfAttention
from spikingjelly.activation_based.neuron import BaseNode
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.profiler import ProfilerActivity, profile, record_function

from tdformer.models.attention import ControlledAttention, TokenQKAttention
from tdformer.models.neurons import LIF, ParametricLIF

Kind = Literal["convolution", "batch_norm", "lif", "batch_norm_and_lif", "attention", "optimizer", "other"]
"""convolution: linear maps too. batch_norm_and_lif: done by one kernel. attention: what is between its maps and its neurons."""
MODULES: tuple[tuple[Kind, tuple[type[nn.Module], ...]], ...] = (
    ("convolution", (nn.Conv1d, nn.Conv2d, nn.Linear)),
    ("batch_norm", (_BatchNorm,)),
    ("lif", (LIF, ParametricLIF, BaseNode)),
    ("attention", (TokenQKAttention, ControlledAttention, QKAttention, PeerSelfAttention)),
)
MARK = "kind:"
BACKWARD = "autograd::engine::evaluate_function"


def time_by_category(step: Callable[[], object], model: nn.Module, device: torch.device) -> dict[Kind, float]:
    """Of one step's time: on CUDA that of its kernels, else that of the CPU. They sum to 1."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with marked(model), profile(activities=activities) as profiler:
        step()
    events = [event for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CPU]
    times: dict[Kind, float] = defaultdict(float)
    kinds = _kinds_of_sequence_numbers(events)
    for event in events:
        own = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        times[_kind(event, kinds)] += own
    total = sum(times.values())
    return {kind: time / total for kind, time in sorted(times.items(), key=lambda item: -item[1])}


@contextmanager
def optimizing() -> Iterator[None]:
    """Around the optimizer's step."""
    with record_function(f"{MARK}optimizer"):
        yield


@contextmanager
def marked(model: nn.Module) -> Iterator[None]:
    handles, open_marks = [], []

    def enter(kind: Kind) -> Callable[..., None]:
        def mark(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            norm_is_within = isinstance(module, LIF) and len(inputs) > 2 and module.takes_in(inputs[2], inputs[0])
            open_marks.append(record_function(MARK + ("batch_norm_and_lif" if norm_is_within else kind)))
            open_marks[-1].__enter__()

        return mark

    def leave(*_: object) -> None:
        open_marks.pop().__exit__(None, None, None)

    for module in model.modules():
        for kind, classes in MODULES:
            if isinstance(module, classes):
                handles += [module.register_forward_pre_hook(enter(kind)), module.register_forward_hook(leave)]
                break
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _kinds_of_sequence_numbers(events: list[Any]) -> dict[int, Kind]:
    """The kind of each forward operation that has a backward one. The last event with a number is the one that made the graph's node."""
    forward = [event for event in events if event.sequence_nr >= 0 and not _is_in_backward(event)]
    return {event.sequence_nr: _kind(event, {}) for event in sorted(forward, key=lambda event: event.time_range.start)}


def _is_in_backward(event: Any) -> bool:
    return any(ancestor.name.startswith(BACKWARD) for ancestor in _with_ancestors(event))


def _kind(event: Any, of_sequence_numbers: dict[int, Kind]) -> Kind:
    for ancestor in _with_ancestors(event):
        if ancestor.name.startswith(MARK):
            return ancestor.name.removeprefix(MARK)
        if ancestor.name.startswith(BACKWARD):
            return of_sequence_numbers.get(ancestor.sequence_nr, "other")
    return "other"


def _with_ancestors(event: Any) -> Iterator[Any]:
    while event is not None:
        yield event
        event = event.cpu_parent
