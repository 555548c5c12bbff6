"""What rank 0 tells while a run goes on: a progress bar or plain lines, metrics.jsonl, MLflow. Other ranks are silent."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from data_pipelines.errors import UserError
from tdformer.config import RunConfig
from tdformer.evaluation import Evaluation
from tdformer.ranks import Ranks
from tdformer.tracking.tracker import Tracker
from tdformer.training.checkpoints import Position
from tdformer.training.metrics import MetricsFile, draw_learning_curve
from tdformer.training.run_directory import CURVE_FILE, METRICS_FILE
from tdformer.training.this_session import this_session
from tdformer.training.time_left import TimeLeft
from tdformer.watchdog.progress import TRAINING


class Report:
    """Silent as it stands; FirstRankReport speaks."""

    def step(self, step: int, epoch: float, metrics: dict[str, float] | None) -> None:
        """After each optimizer step; metrics at every log_every-th."""

    def evaluation(self, step: int, epoch: int, result: Evaluation, averaged: Evaluation | None) -> None:
        """After an evaluation, and one of the averaged weights if there are any."""

    def say(self, text: str) -> None:
        """One line."""

    def stopped(self) -> None:
        """The run was told to stop and its state is saved."""


class FirstRankReport(Report):
    def __init__(self, run_dir: Path, progress: Progress, tracker: Tracker, position: Position, total_steps: int) -> None:
        self.run_dir, self.tracker, self.progress = run_dir, tracker, progress
        self.metrics_file = MetricsFile(run_dir / METRICS_FILE)
        self.title = run_dir.name
        self.total_steps = total_steps
        self._warned = False
        self.time_left = TimeLeft(total_steps)
        self.task = progress.add_task("", total=total_steps, completed=position.step, left="")

    def step(self, step: int, epoch: float, metrics: dict[str, float] | None) -> None:
        left = self.time_left.after(step)
        self.progress.update(self.task, completed=step, left=left)
        if metrics is not None:
            self._record(step, epoch, metrics)
            text = f"loss {metrics['train/loss']:.4f}  {metrics['train/images_per_s']:.0f} img/s"
            self.progress.update(self.task, description=f"epoch {epoch:.1f}  {text}")
            if not self.progress.live.is_started:
                line = f"step {step}/{self.total_steps}  epoch {epoch:.2f}  {text}  lr {metrics['train/lr']:.2e}  {left}"
                self.say(line.rstrip())

    def evaluation(self, step: int, epoch: int, result: Evaluation, averaged: Evaluation | None) -> None:
        segments = {f"val/top1_segment{n}": top1 for n, top1 in enumerate(result.top1_by_segment[:-1], start=1)}
        ema = {"val/top1_ema": averaged.top1, "val/loss_ema": averaged.loss} if averaged else {}
        self._record(step, epoch, {"val/top1": result.top1, "val/top5": result.top5, "val/loss": result.loss, **segments, **ema})
        with self._as_the_disk_allows(CURVE_FILE):
            draw_learning_curve(self.metrics_file.rows(), self.run_dir / CURVE_FILE, self.title)
        of_average = f"  (EMA {averaged.top1:.2f} %)" if averaged else ""
        self.say(f"epoch {epoch}  validation top-1 {result.top1:.2f} %{of_average}  loss {result.loss:.4f}  ({result.samples} images)")

    def say(self, text: str) -> None:
        self.progress.console.print(text, highlight=False, soft_wrap=True)

    def stopped(self) -> None:
        self.tracker.end("stopped")

    def _record(self, step: int, epoch: float, metrics: dict[str, float]) -> None:
        with self._as_the_disk_allows(METRICS_FILE):
            self.metrics_file.append(step, epoch, metrics)
            self.tracker.reached(step)

    @contextmanager
    def _as_the_disk_allows(self, name: str) -> Iterator[None]:
        """That something cannot be written is told once, and training goes on."""
        try:
            yield
        except OSError as error:
            if not self._warned:
                self.say(f"warning: {self.run_dir / name} cannot be written ({error.strerror or error}); training goes on.")
            self._warned = True


@contextmanager
def reporting(config: RunConfig, run_dir: Path, position: Position, total_steps: int, ranks: Ranks) -> Iterator[Report]:
    """The Report of a rank that starts at `position`, and around it the MLflow run (closed with the right status) and the progress bar."""
    tracker = ranks.together(lambda: _record_of(config, run_dir, position, ranks) if ranks.is_first else None)
    ranks.watchdog.progress.enter_phase(TRAINING)
    if tracker is None:
        yield Report()
        return
    with ExitStack() as stack:
        stack.enter_context(_leaving(tracker, ranks))
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps  {task.fields[left]}"))
        progress = Progress(*columns, console=Console(file=sys.stdout))
        if sys.stdout.isatty():
            stack.enter_context(progress)
        yield FirstRankReport(run_dir, progress, tracker, position, total_steps)


@contextmanager
def _leaving(tracker: Tracker, ranks: Ranks) -> Iterator[None]:
    """Inside the tracker; what it waits for at its end counts as saving."""
    with ExitStack() as slow, tracker:
        try:
            yield
        finally:
            slow.enter_context(ranks.watchdog.progress.slow_phase("saving"))


def _record_of(config: RunConfig, run_dir: Path, position: Position, ranks: Ranks) -> Tracker:
    """The run's MLflow run; with its metrics file, both go on from `position`."""
    path = run_dir / METRICS_FILE
    try:
        MetricsFile(path).cut_after(position.step, position.evaluated_epochs)
    except OSError as error:
        raise UserError(f"{path} cannot be read and written ({error.strerror or error}); put it in order, or move it away.") from None
    return Tracker(config.tracking, run_dir, this_session(ranks, position.step))


class Throughput:
    """Images per second of the training steps, and the share of that time spent waiting for data."""

    def __init__(self) -> None:
        self.images = self.seconds = self.waited = self.stall = 0.0
        self._total_images = self._total_seconds = 0.0

    @contextmanager
    def training(self, images: int) -> Iterator[None]:
        """Around one optimizer step, its wait for data included."""
        start = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - start
        self.images += images

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the wait for data, inside `training`."""
        start = time.perf_counter()
        yield
        self.waited += time.perf_counter() - start

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Around what training waits for when a checkpoint is saved."""
        start = time.perf_counter()
        yield
        self.stall += time.perf_counter() - start

    def take(self) -> dict[str, float]:
        """The metrics since the last call."""
        metrics = {"train/images_per_s": self.images / self.seconds, "train/data_wait_share": self.waited / self.seconds}
        metrics["train/checkpoint_stall_s"] = self.stall
        self._total_images += self.images
        self._total_seconds += self.seconds
        self.images = self.seconds = self.waited = self.stall = 0.0
        return metrics

    def overall(self) -> float:
        """Images per second since the start of this process; 0 before the first step."""
        seconds = self._total_seconds + self.seconds
        return (self._total_images + self.images) / seconds if seconds else 0.0
