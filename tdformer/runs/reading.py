"""Reads run directories for lists, tables and reports. What cannot be read of a run becomes a note of that run, and hides nothing else.

MLflow's search is not used. For 200 runs with two curves each, MLflow took 4.6 s of CPU time and 2 s more to be imported; the files take
0.3 s. It also lacks runs that were not sent to it, whether a process still trains a run, sessions and checkpoints.
"""

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
"""These are numbers of training rows that are read of each run. The last one is for the curves of more than FOR_ONE_PROCESS runs."""
FOR_ONE_PROCESS = 50
"""More runs than this are read by several processes. Starting them takes a tenth of a second."""


@dataclass(frozen=True, eq=False)
class Run:
    """This is what a run directory holds, as far as it can be read."""

    path: Path
    config: dict[str, Any]
    """The configuration by dotted key. It is empty if it cannot be read."""
    state: State
    sessions: list[Session]
    metrics: MetricRows
    checkpoints: dict[str, str]
    """The names of the checkpoints `latest` and `best`, as far as they exist."""
    mlflow_id: str | None
    changed: float
    """The time when the run was last written to, in seconds since 1970."""
    notes: list[str] = field(default_factory=list)
    """Sentences that say what is wrong with the run."""

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def last(self) -> Point | None:
        """Returns the step and the epoch of the last row of metrics. The value is 0."""
        row = max(self.metrics.rows, key=lambda row: row["step"], default=None)
        return Point(row["step"], row["epoch"], 0) if row else None

    @property
    def images_per_s(self) -> float | None:
        """Returns the median of the speeds, so that slow first steps and a pause do not count."""
        speeds = [point.value for point in self.metrics.series(IMAGES_PER_S)]
        return statistics.median(speeds) if speeds else None

    @property
    def gpu_hours(self) -> float | None:
        return self._hours(on_gpu=True)

    @property
    def cpu_process_hours(self) -> float | None:
        """Returns hours times processes of training on CPUs. They are no price, as hours of GPUs are."""
        return self._hours(on_gpu=False)

    def _hours(self, on_gpu: bool) -> float | None:
        hours = [session.device_hours for session in self.sessions if bool(session.gpus) is on_gpu]
        return sum(hours) if hours else None


def is_run(path: Path) -> bool:
    return RunDir(path).config.is_file() or RunDir(path).metrics.is_file()


def find(paths: Sequence[Path]) -> list[Path]:
    """Returns run directories: those given, and those in the folders given. Each is there once, in the order given.

    A folder may hold folders of runs, as that of a sweep does. Raises UserError for a path that is neither a run nor holds one.
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
    """Reads runs, and returns them in the order given. Many runs are read by several processes. See `read` for the arguments."""
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
    """Reads a run, and keeps of its training rows only the metrics with these names, and the last row whole.

    Sending a run from one process to another takes time.
    """
    run = read_one(path)
    return replace(run, metrics=run.metrics.slim(names))


def read(path: Path, metrics: Iterable[str] = (), samples: int = FOR_A_CURVE) -> Run:
    """Reads one run. It raises nothing for a damaged run: notes say what is wrong.

    metrics names those besides val/… whose best value is wanted. samples is the number of training rows to read, at equal distances.
    """
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
    """Returns the first line of a small file. It is None if there is no such file, or an empty line."""
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
