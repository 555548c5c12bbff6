"""Measures loader and network together: steps of the real training loop, and the share of them that is spent waiting for data."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import closing, redirect_stdout
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from data_pipelines.errors import UserError
from data_pipelines.formats.manifest import Format
from data_pipelines.formats.turbojpeg import require_ffcv
from data_pipelines.prepare.options import PrepareOptions
from data_pipelines.prepare.prepare_dataset import prepare_dataset
from data_pipelines.sources.folders import ImageFolderSource
from tdformer.bench.loader import THREADS
from tdformer.bench.loader_pipelines import STORAGE
from tdformer.bench.photographs import NAMES, write_photographs
from tdformer.config import RunConfig
from tdformer.distributed.context import DistContext
from tdformer.rundir.creation import claim
from tdformer.rundir.metrics_file import MetricsFile
from tdformer.rundir.run_dir import RunDir
from tdformer.training.faults.preemption import stopping
from tdformer.training.report import reporting
from tdformer.training.telemetry.stopwatch import PARTS
from tdformer.training.trainer import Trainer

STORED_AS: dict[Format, str] = {"wds": "original", "ffcv": "proportion"}
"""The entry of STORAGE for each format. It is the name of the folder too, so that `bench loader` finds the same sets."""

FIRST_STEPS = 3
"""The number of steps in which kernels are compiled and memory is allocated for the first time."""
MIN_POINTS, MAX_POINTS = 3, 10
"""The range for the number of metric points in a median. Each point is a mean over the steps since the point before."""


@dataclass(frozen=True)
class Row:
    """Medians over the metric points of a run, on rank 0."""

    config: str
    format: Format
    images_per_s: float
    seconds_per_step: float
    """Seconds per optimizer step, the wait for data included."""
    data_wait_s: float
    data_wait_share: float
    """Share of a step that is spent waiting for data."""
    data_wait_share_overall: float
    """Share of the time of all measured steps together. It shows waits that happen rarely, which a median hides."""
    workers: int
    """The number of loader processes per rank."""
    device: str
    steps: int
    """The number of steps that were measured."""


def warmup_steps(config: RunConfig, world_size: int) -> int:
    """Return the number of steps at the start that are not measured.

    These are FIRST_STEPS, and the steps whose batches the workers loaded meanwhile. The loader of torch lets each load two ahead.
    """
    accumulation = config.training.accumulation(world_size)
    return FIRST_STEPS - (-2 * config.data.workers // accumulation)


def check_steps(config: RunConfig, steps: int, world_size: int) -> None:
    """Check that enough steps remain to be measured. Raises UserError if not."""
    left_out = warmup_steps(config, world_size)
    if steps < left_out + MIN_POINTS:
        raise UserError(
            f"--steps must be at least {left_out + MIN_POINTS}, got {steps}: the first {left_out} are left out, in which "
            f"{config.data.workers} workers start (data.workers) and kernels are compiled"
        )


def with_photographs(
    config: RunConfig,
    folder: Path,
    images: int,
    format: Format,
    *,
    processes: int = 1,
    progress: Callable[[int], None] = lambda done: None,
) -> RunConfig:
    """Return the configuration with a generated set like ImageNet in place of its data. The set is written into `folder` unless it exists.

    progress: it is called with the number of images done since its last call. Each image counts twice.
    Raises UserError for too few images or without a package that is needed, DataError if the folder holds anything else.
    """
    if images < max(len(NAMES), config.training.global_batch):
        raise UserError(
            f"--images must be at least {max(len(NAMES), config.training.global_batch)}, one for each of {len(NAMES)} classes and "
            f"training.global_batch ({config.training.global_batch}), got {images}"
        )
    if format == "ffcv":
        require_ffcv()
    files, stored = write_photographs(folder, images, processes=processes, progress=progress), folder / STORED_AS[format]
    prepare_dataset(ImageFolderSource(files), stored, PrepareOptions(STORAGE[STORED_AS[format]]), processes=processes, progress=progress)
    torch.set_num_threads(THREADS)  # A small set is written in this process, and the package ffcv reduces its threads to one.
    # The head keeps its number of classes, so that no shape changes. Some classes have no images.
    model = config.model.model_copy(update={"num_classes": max(config.model.num_classes, len(NAMES))})
    data = config.data.model_copy(update={"train": str(stored), "val": str(stored), "train_samples": None})
    return config.model_copy(update={"model": model, "data": data})


def measure(config: RunConfig, steps: int, context: DistContext) -> Row | None:
    """Train this many optimizer steps from random weights, with MLflow, and delete the run afterwards. Return None on ranks other than 0.

    The messages of the run go to stderr. Raises UserError for too few steps, or after a stop signal.
    """
    check_steps(config, steps, context.world_size)
    with TemporaryDirectory(prefix="tdformer-bench-") as own, redirect_stdout(sys.stderr):
        folder = Path(context.broadcast(own))
        config = _bench_config(config, steps, warmup_steps(config, context.world_size), folder)
        run_dir = RunDir(folder / "run")
        format = _train(config, run_dir, steps, context)
        points = MetricsFile(run_dir.metrics).rows() if context.is_rank0 else None
    return None if points is None else _row(config, format, points, context)


def _bench_config(config: RunConfig, steps: int, left_out: int, folder: Path) -> RunConfig:
    """Return the configuration of the same run in a temporary folder, which logs often enough.

    The run has more epochs than are measured. Workers that have finished would leave their cores to the last steps.
    """
    every = max(1, (steps - left_out) // MAX_POINTS)
    training = config.training.model_copy(update={"log_every": every, "epochs": max(config.training.epochs, steps + left_out)})
    tracking = config.tracking.model_copy(update={"uri": f"sqlite:///{folder}/mlflow.db", "log_model": "none", "register_as": None})
    return config.model_copy(update={"init": None, "output": folder, "training": training, "tracking": tracking})


def _train(config: RunConfig, run_dir: RunDir, steps: int, context: DistContext) -> Format:
    """Run the steps of `tdformer.training.loop.train` without evaluations and checkpoints, and return the format of the training set.

    Raises UserError after a stop signal. The usual exit after such a signal would leave the temporary folder behind.
    """
    context.on_all_ranks(lambda: claim(run_dir, config) if context.is_rank0 else None)
    with stopping(config.preemption) as stop:
        trainer = Trainer(config, run_dir, context, stop)
        with closing(trainer), reporting(config, run_dir, trainer.train_state, steps, context) as report:
            trainer.announce(report)
            for _ in range(steps):
                trainer.step(report)
                if any(context.any(bool(stop))):
                    raise UserError(f"stopped by {stop.reason or 'a signal to another rank'}; nothing was measured")
    return trainer.train_set.manifest.format


def _row(config: RunConfig, format: Format, points: list[dict[str, Any]], context: DistContext) -> Row:
    left_out = warmup_steps(config, context.world_size)
    measured = [(point, point["step"] - before["step"]) for before, point in pairwise(points) if before["step"] >= left_out]
    lasted = [sum(point[f"time/{part}_s"] for part in PARTS) for point, _ in measured]
    waited = [point["time/data_wait_s"] for point, _ in measured]
    counts = [count for _, count in measured]
    shares = [wait / step for wait, step in zip(waited, lasted, strict=True)]
    overall = _weighted(waited, counts) / _weighted(lasted, counts)
    speed = median(point["train/images_per_s"] for point, _ in measured)
    medians = speed, median(lasted), median(waited), median(shares)
    return Row(config.name, format, *medians, overall, config.data.workers, context.device.type, sum(counts))


def _weighted(seconds: list[float], counts: list[int]) -> float:
    return sum(each * count for each, count in zip(seconds, counts, strict=True))
