"""Records how busy rank 0's machine is, by MLflow's own monitors, in the run directory."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from data_pipelines.storage.files import append_line
from tdformer.rundir.run_dir import RunDir
from tdformer.rundir.run_lock import MayWrite, always

SECONDS_BETWEEN = 10.0
PREFIX = "system/"


class SystemMetrics:
    """Appends a row every ten seconds, in a thread. MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL changes that time. `step` counts rows."""

    def __init__(self, run_dir: RunDir, may_write: MayWrite = always) -> None:
        from mlflow.environment_variables import MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL

        self._path, self._step = run_dir.system_metrics, _next_step(run_dir.system_metrics)
        self._may_write = may_write
        self._seconds = MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL.get() or SECONDS_BETWEEN
        self._monitors = list(_monitors())
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="system metrics", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        self._ending.set()
        self._thread.join(SECONDS_BETWEEN)

    def _run(self) -> None:
        while not self._ending.wait(self._seconds):
            row: dict[str, Any] = {"step": self._step, "time": time.time()}
            for monitor in self._monitors:
                monitor.collect_metrics()
                row |= {PREFIX + name: value for name, value in monitor.aggregate_metrics().items()}
                monitor.clear_metrics()
            with suppress(OSError):  # the writers of more important rows warn of a full disk
                if self._may_write():
                    append_line(self._path, json.dumps(row))
            self._step += 1


def _monitors() -> Iterator[Any]:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    yield from (CPUMonitor(), DiskMonitor(), NetworkMonitor())
    with suppress(Exception):  # NVML has many errors that mean that there is no GPU
        yield GPUMonitor()


def _next_step(path: Path) -> int:
    """Return the step after that of the last row that can be read."""
    steps = [-1]
    with suppress(OSError):
        for line in path.read_text(errors="replace").splitlines():
            with suppress(ValueError, KeyError, TypeError):
                steps.append(int(json.loads(line)["step"]))
    return max(steps) + 1
