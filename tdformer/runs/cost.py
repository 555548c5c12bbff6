"""Says what a run cost: GPU hours, or CPU process hours for a run without a GPU."""

from __future__ import annotations

from collections.abc import Sequence

from tdformer.runs.run import Run


def hours_of(run: Run) -> float | None:
    """Return the GPU hours of a run, or its CPU process hours if it used no GPU. None if it has no sessions."""
    return run.gpu_hours if run.gpu_hours is not None else run.cpu_process_hours


def unit_of(runs: Sequence[Run]) -> str:
    """Return the unit of `hours_of` for these runs together."""
    if all(run.gpu_hours is None for run in runs) and any(run.cpu_process_hours is not None for run in runs):
        return "CPU process hours"
    return "GPU hours"
