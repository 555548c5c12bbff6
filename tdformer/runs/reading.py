"""Run directories, read. What cannot be read of one run is told in a note of that run, and hides neither its rest nor the others."""

from __future__ import annotations

import multiprocessing
import os
import statistics
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from data_pipelines.errors import UserError
from tdformer.rundir import sessions
from tdformer.rundir.run_dir import RunDir
from tdformer.rundir.sessions import Session
from tdformer.runs import configs, metric_rows
from tdformer.runs.metric_rows import MetricRows, Point
from tdformer.runs.states import State, state_of
from tdformer.tracking.run_ids import read_run_id

TRAIN_LOSS, IMAGES_PER_S = "train/loss", "train/images_per_s"
FOR_A_LIST, FOR_A_CURVE, FOR_ONE_OF_MANY = 20, 200, 50
"""Training rows per run; the last for the curves of more runs than FOR_ONE_PROCESS."""
FOR_ONE_PROCESS = 50
"""Runs. Above that, starting others is worth its tenth of a second."""


@dataclass(frozen=True, eq=False)
class Run:
    path: Path
    config: dict[str, Any]
    """By dotted key; empty if it cannot be read."""
    state: State
    sessions: list[Session]
    metrics: MetricRows
    checkpoints: dict[str, str]
    """Names of `latest` and `best`."""
    mlflow_id: str | None
    changed: float
    """When it was last written to, in seconds since 1970."""
    notes: list[str] = field(default_factory=list)
    """What is wrong with it."""

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def last(self) -> Point | None:
        """The last point of any metric, by its step and epoch."""
        row = max(self.metrics.rows, key=lambda row: row["step"], default=None)
        return Point(row["step"], row["epoch"], 0) if row else None

    @property
    def images_per_s(self) -> float | None:
        """The median: slow first steps and a pause do not count."""
        speeds = [point.value for point in self.metrics.series(IMAGES_PER_S)]
        return statistics.median(speeds) if speeds else None

    @property
    def gpu_hours(self) -> float | None:
        return self._hours(on_gpu=True)

    @property
    def cpu_process_hours(self) -> float | None:
        """Of training on CPUs: hours times processes, which is no price."""
        return self._hours(on_gpu=False)

    def _hours(self, on_gpu: bool) -> float | None:
        hours = [session.device_hours for session in self.sessions if bool(session.gpus) is on_gpu]
        return sum(hours) if hours else None


def is_run(path: Path) -> bool:
    return RunDir(path).config.is_file() or RunDir(path).metrics.is_file()


def find(paths: Sequence[Path]) -> list[Path]:
    """Runs, and those in folders of runs, in which each may be a folder of runs once more, as a sweep is. Each once, in order.

    Raises UserError for a path that is neither.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        if not path.is_dir():
            raise UserError(f"there is no folder {path}; give run directories, or folders of runs.")
        runs = [path] if is_run(path) else list(_within(path, depth=2))
        if not runs:
            raise UserError(f"{path} is no run directory and holds none; give run directories (with a config.yaml), or folders of runs.")
        for run in runs:
            found.setdefault(run.resolve(), run)
    return list(found.values())


def _within(folder: Path, depth: int) -> Iterable[Path]:
    try:
        children = sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    except OSError as error:
        raise UserError(f"folder {folder} cannot be read ({error.strerror}); see to its permissions.") from None
    for child in children:
        if is_run(child):
            yield child
        elif depth > 1:
            yield from _within(child, depth - 1)


def read_all(paths: Sequence[Path], metrics: Iterable[str] = (), samples: int | None = None) -> list[Run]:
    """In the order given. See read."""
    samples = samples or (FOR_A_CURVE if len(paths) <= FOR_ONE_PROCESS else FOR_ONE_OF_MANY)
    metrics = tuple(metrics)
    read_one = partial(read, metrics=metrics, samples=samples)
    processes = min(len(os.sched_getaffinity(0)), 8)
    if len(paths) <= FOR_ONE_PROCESS or processes == 1:
        return list(map(read_one, paths))
    read_slim = partial(_read_slim, read_one, (TRAIN_LOSS, IMAGES_PER_S, *metrics))
    with ProcessPoolExecutor(processes, multiprocessing.get_context("fork")) as pool:
        return list(pool.map(read_slim, paths, chunksize=len(paths) // (4 * processes) + 1))


def _read_slim(read_one: Callable[[Path], Run], names: Sequence[str], path: Path) -> Run:
    """What a process sends to another takes time: of training rows, the metrics with these names, and the last one whole."""
    run = read_one(path)
    return replace(run, metrics=run.metrics.slim(names))


def read(path: Path, metrics: Iterable[str] = (), samples: int = FOR_A_CURVE) -> Run:
    """metrics: those besides val/… whose best value is wanted."""
    notes: list[str] = []
    run_dir = RunDir(path)
    config = _config(run_dir, notes)
    rows = _rows(run_dir, [name for name in metrics if not name.startswith("val/")], samples, notes)
    begun, unreadable = sessions.read_all(run_dir)
    has_begun, epochs = bool(rows.rows), config.get("training.epochs")
    is_complete = isinstance(epochs, int) and any(point.epoch >= epochs for point in rows.series("val/top1"))
    state = state_of(run_dir, begun, has_begun, is_complete)
    if rows.ends_within_a_row and state != "running":
        notes.append(f"{run_dir.metrics.name} ends within a row, which is left out")
    if not config and not has_begun:
        state = "damaged"
    pointers = {pointer.name: text for pointer in (run_dir.latest, run_dir.best) if (text := _word(pointer))}
    times = [session.seen for session in begun[-1:]] + [rows.last_time or 0.0]
    changed = max(times) or _modified(run_dir)
    return Run(path, config, state, begun, rows, pointers, read_run_id(run_dir, config.get("tracking.uri")), changed, notes + unreadable)


def _config(run_dir: RunDir, notes: list[str]) -> dict[str, Any]:
    path = run_dir.config
    try:
        return configs.read_flat(path)
    except FileNotFoundError:
        notes.append(f"{path.name} is missing")
    except OSError as error:
        notes.append(f"{path.name} cannot be read ({error.strerror})")
    except ValueError as error:
        notes.append(f"{path.name} is damaged ({error})")
    return {}


def _rows(run_dir: RunDir, metrics: list[str], samples: int, notes: list[str]) -> MetricRows:
    try:
        rows = metric_rows.read(run_dir.metrics, samples, metrics)
    except FileNotFoundError:
        return MetricRows([])
    except OSError as error:
        notes.append(f"{run_dir.metrics.name} cannot be read ({error.strerror})")
        return MetricRows([])
    if rows.unreadable:
        notes.append(f"{run_dir.metrics.name} is damaged: {rows.unreadable} of the rows looked at cannot be read and are left out")
    return rows


def _word(path: Path) -> str | None:
    """The first line of a small file; None without one."""
    try:
        with path.open(errors="replace") as file:
            return file.readline(200).strip() or None
    except OSError:
        return None


def _modified(run_dir: RunDir) -> float:
    try:
        return max(path.stat().st_mtime for path in (run_dir.config, run_dir.metrics) if path.exists())
    except (OSError, ValueError):
        return 0.0
