"""Measures the peak of allocated memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(action: Callable[[], object], device: torch.device) -> int:
    """Return the peak of bytes that tensors take while `action` runs, without the bytes that they took before.

    On CUDA `action` runs twice: the first call allocates workspaces that are kept.
    """
    if device.type != "cuda":
        return _peak_on_cpu(action)
    action()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    action()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _peak_on_cpu(action: Callable[[], object]) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        action()
    kineto: Any = profiler.profiler
    events = [event for event in kineto.kineto_results.events() if event.name() == "[memory]"]
    allocations = sorted((event.start_ns(), event.nbytes()) for event in events)
    return max(itertools.accumulate(size for _, size in allocations))
