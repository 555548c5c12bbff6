"""Measures how the time of a training step divides among categories of operations: convolution, BatchNorm, LIF neurons, attention …

Each module class belongs to one category. While a module runs, a range of torch's profiler carries the name of its category. An
operation of the backward pass belongs to the category of its forward operation. The profiler links the two by sequence numbers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from spikingjelly.activation_based.layer.attention import QKAttention
from spikingjelly.activation_based.layer.attention import SpikingSelfAttention as ReferenceSelfAttention
from spikingjelly.activation_based.neuron import BaseNode
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.profiler import ProfilerActivity, profile, record_function

from tdformer.models.attention import ControlledAttention, TokenQKAttention
from tdformer.models.neurons import LIF, ParametricLIF

OpCategory = Literal["convolution", "batch_norm", "lif", "batch_norm_and_lif", "attention", "optimizer", "other"]
"""convolution includes linear layers. batch_norm_and_lif is one kernel that does both. attention is the computation between the linear
maps of an attention layer and its neurons, without these."""
MODULES: tuple[tuple[OpCategory, tuple[type[nn.Module], ...]], ...] = (
    ("convolution", (nn.Conv1d, nn.Conv2d, nn.Linear)),
    ("batch_norm", (_BatchNorm,)),
    ("lif", (LIF, ParametricLIF, BaseNode)),
    ("attention", (TokenQKAttention, ControlledAttention, QKAttention, ReferenceSelfAttention)),
)
PREFIX = "category:"
"""The start of the names of our ranges in a profile."""
BACKWARD = "autograd::engine::evaluate_function"


def time_by_category(step: Callable[[], object], model: nn.Module, device: torch.device) -> dict[OpCategory, float]:
    """Return the share of each category in the time of one step, largest first; shares sum to 1.

    On CUDA this is the time of kernels, elsewhere CPU time.
    """
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with annotated(model), profile(activities=activities) as profiler:
        step()
    events = [event for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CPU]
    times: dict[OpCategory, float] = defaultdict(float)
    categories = _categories_by_sequence_number(events)
    for event in events:
        own = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        times[_category(event, categories)] += own
    total = sum(times.values())
    return {category: time / total for category, time in sorted(times.items(), key=lambda item: -item[1])}


@contextmanager
def optimizer_range() -> Iterator[None]:
    """Assign everything that runs within this context to the category `optimizer`."""
    with record_function(f"{PREFIX}optimizer"):
        yield


@contextmanager
def annotated(model: nn.Module) -> Iterator[None]:
    """Open a profiler range around every call of a module that has a category, as long as this context is open."""
    handles, open_ranges = [], []

    def enter(category: OpCategory) -> Callable[..., None]:
        def open_range(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            norm_is_within = isinstance(module, LIF) and len(inputs) > 2 and module.takes_in(inputs[2], inputs[0])
            open_ranges.append(record_function(PREFIX + ("batch_norm_and_lif" if norm_is_within else category)))
            open_ranges[-1].__enter__()

        return open_range

    def leave(*_: object) -> None:
        open_ranges.pop().__exit__(None, None, None)

    for module in model.modules():
        for category, classes in MODULES:
            if isinstance(module, classes):
                handles += [module.register_forward_pre_hook(enter(category)), module.register_forward_hook(leave)]
                break
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _categories_by_sequence_number(events: list[Any]) -> dict[int, OpCategory]:
    """Return the category of each forward operation that has a backward operation.

    Several events can share a number. The last of them made the node of the autograd graph, so it counts.
    """
    forward = [event for event in events if event.sequence_nr >= 0 and not _is_in_backward(event)]
    return {event.sequence_nr: _category(event, {}) for event in sorted(forward, key=lambda event: event.time_range.start)}


def _is_in_backward(event: Any) -> bool:
    return any(ancestor.name.startswith(BACKWARD) for ancestor in _with_ancestors(event))


def _category(event: Any, by_sequence_number: dict[int, OpCategory]) -> OpCategory:
    """Return the category of the innermost range around an event."""
    for ancestor in _with_ancestors(event):
        if ancestor.name.startswith(PREFIX):
            return ancestor.name.removeprefix(PREFIX)
        if ancestor.name.startswith(BACKWARD):
            return by_sequence_number.get(ancestor.sequence_nr, "other")
    return "other"


def _with_ancestors(event: Any) -> Iterator[Any]:
    while event is not None:
        yield event
        event = event.cpu_parent
