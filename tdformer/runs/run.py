"""Defines what is known of one run."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tdformer.rundir.sessions import Session
from tdformer.runs.metric_rows import MetricRows, Point
from tdformer.runs.states import State

TRAIN_LOSS, IMAGES_PER_S = "train/loss", "train/images_per_s"


@dataclass(frozen=True, eq=False)
class Run:
    """One run as its directory describes it."""

    path: Path
    config: dict[str, Any]
    """The configuration by dotted keys. It is empty if the file cannot be read."""
    state: State
    sessions: list[Session]
    metrics: MetricRows
    checkpoints: dict[str, str]
    """The names of the checkpoints `latest` and `best`."""
    mlflow_id: str | None
    changed: float
    """The time of the last change to the run, in seconds since 1970."""
    notes: list[str] = field(default_factory=list)
    """Sentences about everything that could not be read."""

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def last(self) -> Point | None:
        """The step and epoch of the last row of metrics. Its value has no meaning."""
        row = max(self.metrics.rows, key=lambda row: row["step"], default=None)
        return Point(row["step"], row["epoch"], 0) if row else None

    @property
    def images_per_s(self) -> float | None:
        """The median speed of training. Slow first steps and a pause do not change a median."""
        speeds = [point.value for point in self.metrics.series(IMAGES_PER_S)]
        return statistics.median(speeds) if speeds else None

    @property
    def gpu_hours(self) -> float | None:
        """Hours of all sessions on GPUs, times the number of processes."""
        return self._hours(on_gpu=True)

    @property
    def cpu_process_hours(self) -> float | None:
        """Hours of all sessions on CPUs, times the number of processes. A process can use many cores, so this is not a price."""
        return self._hours(on_gpu=False)

    def _hours(self, on_gpu: bool) -> float | None:
        hours = [session.device_hours for session in self.sessions if bool(session.gpus) is on_gpu]
        return sum(hours) if hours else None
