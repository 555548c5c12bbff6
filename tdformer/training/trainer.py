"""Trainer: a run in progress, and what the training loop can do with it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from data_pipelines.errors import UnavailableError
from data_pipelines.loading.batch import Batch
from data_pipelines.loading.dataloader import evaluation_batches, train_batches, train_sampler
from data_pipelines.loading.mixup import SeededMixup
from tdformer.checkpoint import store
from tdformer.checkpoint.format import Checkpoint
from tdformer.checkpoint.loss_scale import LossScale
from tdformer.checkpoint.train_state import Snapshot, TrainState
from tdformer.checkpoint.writer import CheckpointWriter
from tdformer.config import RunConfig
from tdformer.config.learning_rate import schedule_of
from tdformer.config.yaml_io import dump_config
from tdformer.distributed.context import DistContext
from tdformer.evaluation import Evaluation, Stopped, evaluate
from tdformer.rundir.run_dir import RunDir
from tdformer.rundir.run_lock import MayWrite, always
from tdformer.training.datasets import notes_on, open_data
from tdformer.training.faults import non_finite
from tdformer.training.faults.bad_samples import BadSamples
from tdformer.training.faults.preemption import StopFlag
from tdformer.training.faults.waiting import patience_of
from tdformer.training.read_ahead import ReadAhead
from tdformer.training.reduction.reduction import TOO_LARGE, StepResult, description
from tdformer.training.report import Report
from tdformer.training.startup import has_begun, latest_valid_on_all_ranks, load_engine, start_or_resume
from tdformer.training.telemetry.loss_spikes import LossSpikes
from tdformer.training.telemetry.telemetry import make_telemetry
from tdformer.training.telemetry.throughput import Throughput


@dataclass(frozen=True)
class Outcome:
    """Says how training ended."""

    train_state: TrainState
    stopped: bool
    """True if a signal or a deadline ended it before its last epoch. Its state is saved."""
    images_per_s: float
    """Mean over the steps of this process; 0 if it took none."""
    parameters: int
    checkpoint: Checkpoint
    """The newest one."""


class Trainer:
    """A run in progress: its data, its engine, and how far it has come.

    Every method that steps, evaluates, decides or saves is collective: all ranks call it together.
    """

    def __init__(self, config: RunConfig, run_dir: RunDir, context: DistContext, stop_flag: StopFlag, may_write: MayWrite = always) -> None:
        """may_write: HeldLock.may_write, which rank 0 asks before it writes."""
        self.config, self.run_dir, self.context, self.stop_flag = config, run_dir, context, stop_flag
        self.patience = patience_of(config, context, lambda: stop_flag)
        begun = has_begun(run_dir, context, self.patience)
        self.train_set, self.val_set = context.on_all_ranks(lambda: open_data(config, were_there=begun), self.patience)
        training = config.training
        sizes = {"global_batch": training.global_batch, "micro_batch": training.micro_batch}
        self.sampler = train_sampler(config.data, self.train_set, config.seed, **sizes, rank=context.rank, world_size=context.world_size)
        self.total_steps = training.epochs * self.sampler.steps_per_epoch
        self.schedule = schedule_of(config, self.sampler.steps_per_epoch)
        self.engine, self.train_state, notes = start_or_resume(config, run_dir, self.train_set, begun, context, self.patience)
        self.notes = notes_on(config, self.train_set, self.val_set, begun) + notes
        self.saved: TrainState | None = self.train_state if self.train_state.step else None
        """The state that was handed to the writer last."""
        self.best_is_unsaved = False
        self.writer = CheckpointWriter(run_dir, config.checkpoint, dump_config(config), context, may_write)
        self.bad_samples = BadSamples(self.train_state.bad_samples, config.data.max_bad_samples, context)
        self.mix = SeededMixup(config.data.augment, config.model.num_classes) if config.data.augment.mixes else None
        steps = self.train_state.step, self.total_steps
        self.batches = train_batches(config.data, self.train_set, self.sampler, *steps, self.patience)
        self.ahead, self.all_have_batches = ReadAhead(self.batches, self.sampler.accumulation), False
        self.loss_spikes = LossSpikes()
        self.throughput = Throughput()
        self.telemetry = make_telemetry(config, run_dir, context)

    def close(self) -> None:
        self.batches.close()
        self.writer.close()
        self.telemetry.close()

    def announce(self, report: Report) -> None:
        """Say what is trained on which data, and where the run goes on."""
        report.say(f"run directory {self.run_dir}")
        training, sampler, dropped = self.config.training, self.sampler, self.sampler.dropped_samples
        report.say(
            f"{len(self.train_set)} training and {len(self.val_set)} validation images; global batch {training.global_batch} = "
            f"{training.micro_batch} x {self.context.world_size} ranks x {sampler.accumulation} accumulation; "
            f"{sampler.steps_per_epoch} steps per epoch"
            + (f", {dropped} images (others in each epoch) are left out to make steps equal" if dropped and sampler.repeats == 1 else "")
            + (f", each with {sampler.repeats} copies of its images; {dropped} images wait for other epochs" if sampler.repeats > 1 else "")
        )
        if self.context.world_size > 1:
            report.say(f"gradients are reduced {description(self.train_state.reduction, training)}")
        for note in self.notes:
            report.say(note)
        if self.train_state.step:
            epoch, consumed = sampler.cursor(self.train_state.step)
            trained = self.train_state.step == self.total_steps
            place = "all epochs are trained" if trained else f"epoch {epoch + 1}, {consumed} of its images seen"
            report.say(f"resumed at step {self.train_state.step} of {self.total_steps} ({place})")

    # --- how far the run is ----------------------------------------------------------------------------------------

    @property
    def epoch(self) -> float:
        """Epochs passed, with a fraction."""
        return self.train_state.step / self.sampler.steps_per_epoch

    def is_done(self) -> bool:
        return self.train_state.evaluated_epochs == self.config.training.epochs

    def evaluation_is_due(self) -> bool:
        """Tell whether an epoch is trained that is not evaluated yet."""
        return self.train_state.step == (self.train_state.evaluated_epochs + 1) * self.sampler.steps_per_epoch

    # --- what the loop does ----------------------------------------------------------------------------------

    def step(self, report: Report) -> None:
        """Take one optimizer step, on this rank's micro-batches of the next global batch.

        If they cannot be read now, on any rank, nothing changes, and the run is told to stop.
        """
        rate, scale = self.schedule.at(self.train_state.step), self.train_state.loss_scale.factor if self.train_state.loss_scale else 1.0
        images = self.config.training.global_batch
        with self.telemetry.step(self.train_state.step + 1, self.engine.model_with_loss), self.throughput.training(images):
            batches = self._next_batches()
            if batches is None:
                return
            losses = [self._micro_step(number, batch, scale) for number, batch in enumerate(batches)]
            self.telemetry.enter("communication")
            self.engine.reduce()
            self.telemetry.enter("optimizer")
            result = self.engine.optimizer_step(rate)
            if self._may_read_ahead():
                self._read_ahead()
        self.bad_samples.note(batches)
        if result.is_taken:
            grown = self.train_state.loss_scale and self.train_state.loss_scale.after_step()
            self.train_state = replace(
                self.train_state, step=self.train_state.step + 1, updates=self.train_state.updates + 1, loss_scale=grown
            )
            self._report_step(report, result, rate)
            return
        self.engine.model_with_loss.check_exact()
        if self.train_state.loss_scale and self.train_state.loss_scale.can_fall and result.problem != TOO_LARGE:
            self._lower_loss_scale(report, self.train_state.loss_scale)
        else:
            self._pass_over(report, batches, losses, result.problem)

    def _next_batches(self) -> list[Batch] | None:
        """Return this rank's micro-batches of the next global batch. Return None, on all ranks, if any rank cannot read its own now."""
        self._read_ahead()
        try:
            if not self.all_have_batches:
                self.context.raise_on_all_ranks(self.ahead.failure)
        except UnavailableError as error:
            self.stop_flag.set_for(f"data that cannot be read: {error}")
            return None
        return self.ahead.take()

    def _read_ahead(self) -> None:
        self.telemetry.enter("data_wait")
        with self.throughput.waiting():
            self.ahead.read()

    def _may_read_ahead(self) -> bool:
        """Tell whether the next step follows this one. A save, an evaluation or a stop must not wait for a rank that cannot read."""
        step = self.train_state.step + 1
        return not (step % self.sampler.steps_per_epoch == 0 or self.writer.is_due(step) or self.stop_flag)

    def _micro_step(self, number: int, batch: Batch, loss_scale: float) -> torch.Tensor:
        """Run one micro-batch forward and backward.

        Its random draws (drop path) are a function of (seed, step, its number in the global batch), and not of its rank.
        """
        self.telemetry.enter("forward")
        key = [self.config.seed, self.train_state.step, number * self.context.world_size + self.context.rank]
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))
        batch = batch.to(self.context.device)
        images_BCHW, labels = batch.images_BCHW, batch.labels_B
        if self.mix and self.config.data.augment.mixes_in(self.sampler.cursor(self.train_state.step).epoch):
            images_BCHW, labels = self.mix(images_BCHW, labels, *key)
        return self.engine.micro_step(images_BCHW, labels, loss_scale)

    def _report_step(self, report: Report, result: StepResult, rate: float) -> None:
        step, metrics = self.train_state.step, None
        if self.loss_spikes.add(result.loss):
            report.say(f"warning: loss spike at step {step}: {result.loss:.4f}")
        if step % self.config.training.log_every == 0:
            self._count_bad_samples(report)
            metrics = {"train/loss": result.loss, "train/lr": rate, "train/gradient_norm": float(result.norm), **self.throughput.take()}
            metrics |= self.telemetry.take(metrics["train/images_per_s"])
            if self.train_state.loss_scale:
                metrics["train/loss_scale"] = self.train_state.loss_scale.factor
            if self.config.data.on_bad_sample == "skip":
                metrics["train/bad_samples"] = float(self.bad_samples.total)
            if self.config.training.on_non_finite != "raise":
                metrics["train/non_finite"] = float(self.train_state.non_finite)
        report.step(step, self.epoch, metrics)

    def _lower_loss_scale(self, report: Report, scale: LossScale) -> None:
        """Pass over a global batch whose gradients overflow fp16 at this loss scale, and lower the scale."""
        lower = scale.after_overflow()
        self.train_state = replace(self.train_state, step=self.train_state.step + 1, loss_scale=lower)
        report.say(
            f"fp16: a gradient overflowed at step {self.train_state.step}, which is passed over; the loss scale is now {lower.factor:g}"
        )
        report.step(self.train_state.step, self.epoch, None)

    def _pass_over(self, report: Report, batches: list[Batch], losses: list[torch.Tensor], problem: str) -> None:
        """Pass over a global batch that made no valid step. Raises NonFiniteError, on all ranks, if that is not allowed."""
        training, step = self.config.training, self.train_state.step + 1
        listed = non_finite.record_samples(self.run_dir, step, batches, losses, self.context)
        found, count = f"{problem} at step {step}", self.train_state.non_finite + 1
        if training.on_non_finite == "raise" or count > training.max_non_finite:
            raise non_finite.refusal(found, count, training.max_non_finite, listed)
        report.say(f"warning: {found}; skipped ({count} so far), its samples are listed in {listed}")
        if training.on_non_finite == "rewind":
            self._rewind(report)
        self.train_state = replace(self.train_state, step=step, non_finite=count)
        report.step(step, self.epoch, None)

    def _rewind(self, report: Report) -> None:
        """Take back the weights of the last checkpoint. The place in the data stays where it is."""
        if failure := self.writer.finish():
            report.say(f"warning: {failure}")
        if not self.context.broadcast(store.has_any(self.run_dir)):
            report.say("warning: there is no checkpoint to rewind to yet; going on with the weights as they are")
            return
        checkpoint, train_state, _ = latest_valid_on_all_ranks(self.run_dir, self.context, self.patience)
        self.engine.close()
        del self.engine
        self.engine, _ = load_engine(self.config, checkpoint, train_state, self.context, self.patience)
        self.train_state = replace(self.train_state, updates=train_state.updates)
        report.say(f"rewound to the weights of {checkpoint.name}")

    def _count_bad_samples(self, report: Report) -> None:
        for sentence in self.bad_samples.add_up():
            report.say(f"skipped: {sentence}")
        self.train_state = replace(self.train_state, bad_samples=self.bad_samples.total)

    def evaluate(self, report: Report) -> None:
        """Evaluate the epoch just finished. If the run must stop meanwhile, the evaluation is left to the resume."""
        try:
            result = self._accuracy()
            averaged = self._accuracy_of_average() if self.engine.has_average else None
        except Stopped:
            return
        except UnavailableError as error:
            self.stop_flag.set_for(f"validation data that cannot be read: {error}")
            return
        top1 = (averaged or result).top1
        self.best_is_unsaved = top1 > self.train_state.best_top1
        self.train_state = replace(
            self.train_state,
            evaluated_epochs=self.train_state.evaluated_epochs + 1,
            best_top1=max(top1, self.train_state.best_top1),
            metrics={"top1": result.top1, "top5": result.top5, "loss": result.loss} | ({"top1_ema": averaged.top1} if averaged else {}),
        )
        report.evaluation(self.train_state.step, self.train_state.evaluated_epochs, result, averaged)

    def _accuracy(self) -> Evaluation:
        model, size, context = self.engine.model_with_loss, self.config.training.eval_batch, self.context
        batches = evaluation_batches(
            self.config.data, self.val_set, batch=size, rank=context.rank, world_size=context.world_size, patience=self.patience
        )
        model.eval()
        try:
            return evaluate(self.engine.logits, batches, self.context, should_stop=lambda: bool(self.stop_flag))
        finally:
            model.train()

    def _accuracy_of_average(self) -> Evaluation:
        with self.engine.averaged():
            return self._accuracy()

    def decide_on_all_ranks(self) -> tuple[bool, bool]:
        """Return whether the run must stop now, and whether it must save now. All ranks get the same answer.

        This is the only collective between two steps, if nothing follows the first. So it tells, too, whether all ranks have their next
        micro-batches.
        """
        flags = bool(self.stop_flag), self.writer.interval_is_over(), not self.ahead.is_ready
        must_stop, interval_is_over, some_lack_batches = self.context.any(*flags)
        self.all_have_batches = not some_lack_batches
        is_evaluated = self.train_state.evaluated_epochs > (self.saved.evaluated_epochs if self.saved else 0)
        return must_stop, must_stop or interval_is_over or is_evaluated or self.writer.is_due(self.train_state.step)

    def save(self, report: Report, *, at_end: bool) -> None:
        """Save the state, unless this very state is saved already.

        at_end: no later save can make up for a failure, so a failure is an error (CheckpointError on all ranks).
        """
        with self.throughput.saving():
            failure = self.writer.finish()
            if failure:
                report.say(f"warning: {failure}")
            if failure or self.saved != self.train_state:
                self._count_bad_samples(report)
                self.writer.save(self._snapshot(), is_best=self.best_is_unsaved)
                self.saved, self.best_is_unsaved = self.train_state, False
            if at_end:
                self.writer.finish(raising=True)

    def _snapshot(self) -> Snapshot:
        engine = self.engine
        average = engine.average_state() if engine.has_average else None
        return Snapshot(self.train_state, engine.model_state(), engine.optimizer_state(), average)

    def outcome(self, stopped: bool) -> Outcome:
        parameters = sum(getattr(p, "ds_numel", p.numel()) for p in self.engine.model_with_loss.parameters())
        checkpoint = Checkpoint.of_step(self.run_dir.checkpoints, self.train_state.step)
        return Outcome(self.train_state, stopped, self.throughput.overall(), parameters, checkpoint)
