"""Reports a run while it goes on: a progress bar or plain lines, metrics.jsonl, and news for MLflow. Only rank 0 reports."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from data_pipelines.errors import UserError
from data_pipelines.storage.passing_trouble import is_passing, unavailable
from tdformer.checkpoint.train_state import TrainState
from tdformer.config import RunConfig
from tdformer.distributed.context import DistContext
from tdformer.distributed.watchdog.progress import TRAINING
from tdformer.evaluation import Evaluation
from tdformer.rundir.metrics_file import Cut, MetricsFile
from tdformer.rundir.run_dir import RunDir
from tdformer.rundir.run_lock import MayWrite, always
from tdformer.tracking.tracker import Tracker
from tdformer.training.learning_curve import draw_learning_curve
from tdformer.training.new_session import new_session
from tdformer.training.reference_watch import ReferenceWatch, watch_of
from tdformer.training.telemetry.time_left import TimeLeft


class Report:
    """Reports nothing. This is what all ranks but rank 0 use."""

    def step(self, step: int, epoch: float, metrics: dict[str, float] | None) -> None:
        """Report an optimizer step. metrics: given at every log_every-th step, else None."""

    def evaluation(self, step: int, epoch: int, result: Evaluation, averaged: Evaluation | None) -> None:
        """Report an evaluation. averaged: that of the averaged weights, if the run keeps any."""

    def say(self, text: str) -> None:
        """Show one line of text."""

    def stopped(self, reason: str) -> None:
        """Report that the run stops before its end, with its state saved."""


class Rank0Report(Report):
    """Shows progress on the terminal, writes metrics.jsonl, and wakes the tracker."""

    def __init__(
        self,
        run_dir: RunDir,
        progress: Progress,
        tracker: Tracker,
        train_state: TrainState,
        total_steps: int,
        may_write: MayWrite,
        reference: ReferenceWatch | None,
    ) -> None:
        self.reference = reference
        self.run_dir, self.tracker, self.progress, self.may_write = run_dir, tracker, progress, may_write
        self.metrics_file = MetricsFile(run_dir.metrics)
        self.title = run_dir.name
        self.total_steps = total_steps
        self._warned = False
        self.time_left = TimeLeft(total_steps)
        self.task = progress.add_task("", total=total_steps, completed=train_state.step, left="")

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
        published = self.reference.curve.top1_after(epoch) if self.reference else None
        beside = {} if published is None else {"reference/val_top1": published}
        measured = {"val/top1": result.top1, "val/top5": result.top5, "val/loss": result.loss, **segments, **ema, **beside}
        self._record(step, epoch, measured)
        self._write(self.run_dir.learning_curve, self._draw_learning_curve)
        of_average = f"  (EMA {averaged.top1:.2f} %)" if averaged else ""
        against = self.reference.text(epoch, result.top1) if self.reference else ""
        self.say(
            f"epoch {epoch}  validation top-1 {result.top1:.2f} %{of_average}{against}  loss {result.loss:.4f}  ({result.samples} images)"
        )
        if self.reference and (warning := self.reference.warning(epoch, result.top1)):
            self.say(warning)

    def say(self, text: str) -> None:
        self.progress.console.print(text, highlight=False, soft_wrap=True)

    def stopped(self, reason: str) -> None:
        self.tracker.end("stopped")
        self.say(f"stopped by {reason}")

    def _record(self, step: int, epoch: float, metrics: dict[str, float]) -> None:
        def append() -> None:
            self.metrics_file.append(step, epoch, metrics)
            self.tracker.reached(step)

        self._write(self.run_dir.metrics, append)

    def _draw_learning_curve(self) -> None:
        curve = self.run_dir.learning_curve
        partial = curve.with_name(f".{curve.name}")
        drawn = self.reference.points() if self.reference else []
        draw_learning_curve(self.metrics_file.rows(), partial, self.title, drawn)
        if self.may_write():
            partial.replace(curve)

    def _write(self, path: Path, write: Callable[[], object]) -> None:
        """Call `write`, which writes `path`, if this process may. A disk error becomes one warning per run, and training goes on."""
        try:
            if self.may_write():
                write()
        except OSError as error:
            if not self._warned:
                self.say(f"warning: {path} cannot be written ({error.strerror or error}); training goes on.")
            self._warned = True


@contextmanager
def reporting(
    config: RunConfig,
    run_dir: RunDir,
    train_state: TrainState,
    total_steps: int,
    context: DistContext,
    may_write: MayWrite = always,
) -> Iterator[Report]:
    """Give this rank's Report of a run that goes on from `train_state`.

    may_write: HeldLock.may_write, which rank 0 asks before it writes. At the end of the context the progress bar is closed, and the
    MLflow run gets its status.
    """

    def open_tracker() -> Tracker:
        return Tracker(config.tracking, run_dir, new_session(context, train_state), may_write)

    cut = context.on_all_ranks(lambda: _cut_metrics(run_dir, train_state, config.training.log_every) if context.is_rank0 else None)
    watched = context.on_all_ranks(lambda: watch_of(config, run_dir, begun=train_state.step > 0) if context.is_rank0 else None)
    tracker = context.on_all_ranks(lambda: open_tracker() if context.is_rank0 else None)
    context.watchdog.progress.enter_phase(TRAINING)
    if tracker is None or cut is None or watched is None:
        yield Report()
        return
    with ExitStack() as stack:
        stack.enter_context(_tracking(tracker, context))
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps  {task.fields[left]}"))
        progress = Progress(*columns, console=Console(file=sys.stdout))
        if sys.stdout.isatty():
            stack.enter_context(progress)
        watch, sentence = watched
        report = Rank0Report(run_dir, progress, tracker, train_state, total_steps, may_write, watch)
        if sentence:
            report.say(sentence)
        if cut.unreadable:
            lines = _lines(cut.unreadable)
            report.say(f"warning: {run_dir.metrics}: {lines} cannot be read; what is there is kept, and left out of tables and curves.")
        if cut.gap_from is not None:
            report.say(
                f"warning: {run_dir.metrics} has no rows from step {cut.gap_from} to step {train_state.step}, from where the run goes on; "
                f"its curve has a gap there, unless you put the file back from a copy."
            )
        yield report


@contextmanager
def _tracking(tracker: Tracker, context: DistContext) -> Iterator[None]:
    """Enter the tracker. Its wait at the end counts as saving for the watchdog."""
    with ExitStack() as slow, tracker:
        try:
            yield
        finally:
            slow.enter_context(context.watchdog.progress.slow_phase("saving"))


def _cut_metrics(run_dir: RunDir, train_state: TrainState, log_every: int) -> Cut:
    """Cut the metrics file back to `train_state`."""
    path = run_dir.metrics
    try:
        return MetricsFile(path).cut_after(train_state.step, train_state.evaluated_epochs, log_every)
    except OSError as error:
        if is_passing(error, was_there=True):
            raise unavailable(path, error) from None
        raise UserError(f"{path} cannot be read and written ({error.strerror or error}); put it in order, or move it away.") from None


def _lines(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:5])) + (", …" if len(numbers) > 5 else "")
    return f"line {shown}" if len(numbers) == 1 else f"{len(numbers)} lines ({shown})"
