"""Reads run directories. What cannot be read of a run becomes a note of that run. The rest of it and all other runs are still read.

MLflow's search is not used. For 200 runs with two curves each, MLflow took 4.6 s of CPU time and 2 s more to be imported; the files took
0.3 s. Besides, MLflow lacks runs that were not sent to it, and it does not know whether a process still trains a run.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tdformer.rundir import sessions
from tdformer.rundir.advice import named_by
from tdformer.rundir.run_dir import RunDir
from tdformer.runs import flat_config, metric_rows
from tdformer.runs.metric_rows import MetricRows
from tdformer.runs.run import IMAGES_PER_S, TRAIN_LOSS, Run
from tdformer.runs.states import state_of
from tdformer.tracking.run_ids import read_run_id

SAMPLES_FOR_LIST, SAMPLES_FOR_CURVE, SAMPLES_FOR_MANY_RUNS = 20, 200, 50
"""The number of training rows that are read of each run: for a list, for curves, and for curves of more than RUNS_FOR_ONE_PROCESS runs."""
RUNS_FOR_ONE_PROCESS = 50
"""The largest number of runs that one process reads. For more runs, starting other processes is worth its tenth of a second."""


def read_all(paths: Sequence[Path], metrics: Iterable[str] = (), samples: int | None = None) -> list[Run]:
    """Read many runs as `read` does, and return them in the given order."""
    samples = samples or (SAMPLES_FOR_CURVE if len(paths) <= RUNS_FOR_ONE_PROCESS else SAMPLES_FOR_MANY_RUNS)
    metrics = tuple(metrics)
    read_one = partial(read, metrics=metrics, samples=samples)
    processes = min(len(os.sched_getaffinity(0)), 8)
    if len(paths) <= RUNS_FOR_ONE_PROCESS or processes == 1:
        return list(map(read_one, paths))
    read_slim = partial(_read_slim, read_one, (TRAIN_LOSS, IMAGES_PER_S, *metrics))
    with ProcessPoolExecutor(processes, multiprocessing.get_context("fork")) as pool:
        return list(pool.map(read_slim, paths, chunksize=len(paths) // (4 * processes) + 1))


def _read_slim(read_one: Callable[[Path], Run], names: Sequence[str], path: Path) -> Run:
    """Read a run, and keep only the named metrics of its training rows, because sending rows to another process takes time."""
    run = read_one(path)
    return replace(run, metrics=run.metrics.slim(names))


def read(path: Path, metrics: Iterable[str] = (), samples: int = SAMPLES_FOR_CURVE) -> Run:
    """Read one run directory. Never raises for damaged files; these become notes.

    metrics: training metrics whose best value is wanted. The best values of val/… are always found.
    samples: about the number of training rows to read.
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
    pointers = _pointers(run_dir, notes)
    times = [session.seen for session in begun[-1:]] + [rows.last_time or 0.0]
    changed = max(times) or _modified(run_dir)
    return Run(path, config, state, begun, rows, pointers, read_run_id(run_dir, config.get("tracking.uri")), changed, notes + unreadable)


def _config(run_dir: RunDir, notes: list[str]) -> dict[str, Any]:
    path = run_dir.config
    try:
        return flat_config.read_flat(path)
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


def _pointers(run_dir: RunDir, notes: list[str]) -> dict[str, str]:
    """Return the names of the checkpoints `latest` and `best`."""
    files = [pointer for pointer in (run_dir.latest, run_dir.best) if pointer.exists()]
    names = {pointer.name: named_by(pointer) for pointer in files}
    notes += [f"{run_dir.checkpoints.name}/{name} names no checkpoint" for name, checkpoint in names.items() if checkpoint is None]
    return {name: checkpoint for name, checkpoint in names.items() if checkpoint is not None}


def _modified(run_dir: RunDir) -> float:
    try:
        return max(path.stat().st_mtime for path in (run_dir.config, run_dir.metrics) if path.exists())
    except (OSError, ValueError):
        return 0.0
