"""Loader and network together: steps of the real training loop with its loader processes, and how long they wait for data."""

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
from tdformer.bench.loader import STORAGE, THREADS
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
"""Which of STORAGE stands for a format. Folders have these names, so that `bench loader` finds the same sets."""

FIRST_STEPS = 3
"""In which kernels are compiled and memory is taken for the first time."""
FEWEST_POINTS, MOST_POINTS = 3, 10
"""Medians are taken over so many points of the run's metrics, each a mean over the steps since the one before."""


@dataclass(frozen=True)
class Row:
    """Medians over the points of the run's metrics, on rank 0.

    seconds_per_step: of an optimizer step, its wait for data included. data_wait_share: of the step. overall: of all measured steps
    together, since a median does not see a wait that comes now and then.
    """

    config: str
    format: Format
    images_per_s: float
    seconds_per_step: float
    data_wait_s: float
    data_wait_share: float
    data_wait_share_overall: float
    workers: int
    """Per rank."""
    device: str
    steps: int
    """That were measured."""


def warm_up(config: RunConfig, world_size: int) -> int:
    """Steps that are left out: FIRST_STEPS, and those whose batches the workers loaded meanwhile, two each as torch's loader has it."""
    accumulation = config.training.accumulation(world_size)
    return FIRST_STEPS - (-2 * config.data.workers // accumulation)


def check_steps(config: RunConfig, steps: int, world_size: int) -> None:
    """Raises UserError if too few remain to be measured."""
    left_out = warm_up(config, world_size)
    if steps < left_out + FEWEST_POINTS:
        raise UserError(
            f"--steps must be at least {left_out + FEWEST_POINTS}, got {steps}: the first {left_out} are left out, in which "
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
    """The configuration, on a set like ImageNet, which is written into the folder as far as it is not there already.

    progress is called with the number of images done since its last call; of each there are two.
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
    torch.set_num_threads(THREADS)  # a small set is written in this process, and the package ffcv leaves it one thread to train with
    # Other labels than these never come, which changes no shape: the head stays as large as the configuration has it.
    model = config.model.model_copy(update={"num_classes": max(config.model.num_classes, len(NAMES))})
    data = config.data.model_copy(update={"train": str(stored), "val": str(stored), "train_samples": None})
    return config.model_copy(update={"model": model, "data": data})


def measure(config: RunConfig, steps: int, context: DistContext) -> Row | None:
    """Train so many optimizer steps from random weights, with MLflow and all, and keep nothing of it. On other ranks than the first: None.

    What the run says goes to stderr.
    """
    check_steps(config, steps, context.world_size)
    with TemporaryDirectory(prefix="tdformer-bench-") as own, redirect_stdout(sys.stderr):
        folder = Path(context.broadcast(own))
        config = _short(config, steps, warm_up(config, context.world_size), folder)
        run_dir = RunDir(folder / "run")
        format = _train(config, run_dir, steps, context)
        points = MetricsFile(run_dir.metrics).rows() if context.is_rank0 else None
    return None if points is None else _row(config, format, points, context)


def _short(config: RunConfig, steps: int, left_out: int, folder: Path) -> RunConfig:
    """The same run, within the folder, with metrics often enough.

    It goes on for longer than is measured: workers that are done would leave their cores to the last steps.
    """
    every = max(1, (steps - left_out) // MOST_POINTS)
    training = config.training.model_copy(update={"log_every": every, "epochs": max(config.training.epochs, steps + left_out)})
    tracking = config.tracking.model_copy(update={"uri": f"sqlite:///{folder}/mlflow.db", "log_model": "none", "register_as": None})
    return config.model_copy(update={"init": None, "output": folder, "training": training, "tracking": tracking})


def _train(config: RunConfig, run_dir: RunDir, steps: int, context: DistContext) -> Format:
    """The steps of `tdformer.training.loop.train`, without its evaluations and checkpoints. Gives the format of the training set.

    Raises UserError after a stop signal: the usual end of a process by it would leave the temporary folder.
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
    left_out = warm_up(config, context.world_size)
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
