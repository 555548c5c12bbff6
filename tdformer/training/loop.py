"""The training loop, and the state that it moves from step to step."""

from __future__ import annotations

import itertools
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from data_pipelines.loading.batch import Batch
from data_pipelines.loading.dataloader import evaluation_batches, train_batches, train_sampler
from data_pipelines.loading.mixup import SeededMixup
from tdformer.checkpoint import store
from tdformer.checkpoint.loss_scale import LossScale
from tdformer.checkpoint.store import Snapshot, TrainState, place_of
from tdformer.checkpoint.writer import CheckpointWriter
from tdformer.config import RunConfig
from tdformer.config.yaml_io import dump_config
from tdformer.distributed.context import DistContext
from tdformer.evaluation import Evaluation, Stopped, evaluate
from tdformer.training.datasets import notes_on, open_data
from tdformer.training.faults import anomalies
from tdformer.training.faults.bad_samples import BadSamples
from tdformer.training.faults.preemption import StopFlag, stopping
from tdformer.training.gradient_accumulator import is_finite
from tdformer.training.optimizer import learning_rate_at
from tdformer.training.report import Report, Throughput, reporting
from tdformer.training.startup import latest_valid, load, start_or_resume
from tdformer.training.telemetry.telemetry import make_telemetry


@dataclass(frozen=True)
class Outcome:
    """How training ended."""

    train_state: TrainState
    stopped: bool
    """True if a signal ended it before its last epoch; its state is saved."""
    images_per_s: float
    parameters: int
    checkpoint: Path


def train(config: RunConfig, run_dir: Path, context: DistContext) -> Outcome:
    """Train a run from its beginning, or from its latest checkpoint, to its end or to a stop signal.

    Raises UserError, on all ranks alike, for what a user can mend.
    """
    with stopping(config.preemption) as stop:
        trainer = Trainer(config, run_dir, context, stop)
        with closing(trainer), reporting(config, run_dir, trainer.train_state, trainer.total_steps, context) as report:
            trainer.announce(report)
            while not trainer.is_done():
                if trainer.evaluation_is_due():
                    trainer.evaluate_and_save(report)
                else:
                    trainer.step(report)
                if trainer.saves_and_is_told_to_stop(report):
                    report.stopped()
                    report.say(f"stopped by {stop.reason or 'a signal to another rank'}")
                    return trainer.outcome(stopped=True)
            return trainer.outcome(stopped=False)


class Trainer:
    """A run in progress: data, engine and position."""

    def __init__(self, config: RunConfig, run_dir: Path, context: DistContext, stop: StopFlag) -> None:
        self.config, self.run_dir, self.context, self.stop = config, run_dir, context, stop
        self.root = run_dir / "checkpoints"
        self.train_set, self.val_set = context.on_all_ranks(lambda: open_data(config))
        training = config.training
        sizes = {"global_batch": training.global_batch, "micro_batch": training.micro_batch}
        self.sampler = train_sampler(config.data, self.train_set, config.seed, **sizes, rank=context.rank, world_size=context.world_size)
        self.total_steps = training.epochs * self.sampler.steps_per_epoch
        self.engine, self.train_state, notes = start_or_resume(config, run_dir, self.train_set, context)
        self.notes = notes_on(config, self.train_set, self.val_set) + notes
        self.saved: TrainState | None = self.train_state if self.train_state.step else None
        self.writer = CheckpointWriter(self.root, config.checkpoint, dump_config(config), context)
        self.bad_samples = BadSamples(self.train_state.bad_samples, config.data.max_bad_samples, context)
        self.mix = SeededMixup(config.data.augment, config.model.num_classes) if config.data.augment.mixes else None
        self.batches = train_batches(config.data, self.train_set, self.sampler, self.train_state.step, self.total_steps)
        self.loss_spikes = anomalies.LossSpikes()
        self.throughput = Throughput()
        self.telemetry = make_telemetry(config, run_dir, context)

    def close(self) -> None:
        self.batches.close()
        self.writer.close()
        self.telemetry.close()

    def announce(self, report: Report) -> None:
        training, sampler = self.config.training, self.sampler
        report.say(
            f"{len(self.train_set)} training and {len(self.val_set)} validation images; global batch {training.global_batch} = "
            f"{training.micro_batch} x {self.context.world_size} ranks x {sampler.accumulation} accumulation; "
            f"{sampler.steps_per_epoch} steps per epoch"
            + (
                f", {sampler.dropped_samples} images (others in each epoch) are left out to make steps equal"
                if sampler.dropped_samples
                else ""
            )
        )
        for note in self.notes:
            report.say(note)
        if self.train_state.step:
            epoch, consumed = sampler.cursor(self.train_state.step)
            place = f"epoch {epoch + 1}, {consumed} of its images seen"
            report.say(f"resumed at step {self.train_state.step} of {self.total_steps} ({place})")

    # --- where we are ----------------------------------------------------------------------------------------

    @property
    def epoch(self) -> float:
        return self.train_state.step / self.sampler.steps_per_epoch

    def is_done(self) -> bool:
        return self.train_state.evaluated_epochs == self.config.training.epochs

    def evaluation_is_due(self) -> bool:
        return self.train_state.step == (self.train_state.evaluated_epochs + 1) * self.sampler.steps_per_epoch

    def learning_rate(self) -> float:
        optimizer, per_epoch = self.config.optimizer, self.sampler.steps_per_epoch
        return learning_rate_at(
            self.train_state.step,
            peak=self.config.learning_rate(),
            floor=optimizer.min_lr,
            warmup_steps=optimizer.warmup_epochs * per_epoch,
            total_steps=self.total_steps,
        )

    # --- what is done there ----------------------------------------------------------------------------------

    def step(self, report: Report) -> None:
        """One optimizer step: this rank's micro-batches of the next global batch."""
        rate, scale = self.learning_rate(), self.train_state.loss_scale.factor if self.train_state.loss_scale else 1.0
        images = self.config.training.global_batch
        with self.telemetry.step(self.train_state.step + 1, self.engine.model_with_loss), self.throughput.training(images):
            with self.throughput.waiting():
                batches = self.context.on_all_ranks(lambda: list(itertools.islice(self.batches, self.sampler.accumulation)))
            losses = [self._micro_step(number, batch, scale) for number, batch in enumerate(batches)]
            self.telemetry.enter("communication")
            loss, norm = self.engine.reduce(scale)
            self.telemetry.enter("optimizer")
            if is_finite(loss, norm):
                self.engine.optimizer_step(rate, norm)
        self.bad_samples.note(batches)
        if is_finite(loss, norm):
            grown = self.train_state.loss_scale and self.train_state.loss_scale.after_step()
            self.train_state = replace(
                self.train_state, step=self.train_state.step + 1, updates=self.train_state.updates + 1, loss_scale=grown
            )
            self._tell(report, loss, norm, rate)
        elif self.train_state.loss_scale and self.train_state.loss_scale.can_fall:
            self._lower_loss_scale(report, self.train_state.loss_scale)
        else:
            self._go_past(report, batches, losses)

    def _micro_step(self, number: int, batch: Batch, loss_scale: float) -> torch.Tensor:
        """Random draws of a micro-batch (drop path) depend on (seed, step, its number in the global batch), not on its rank."""
        self.telemetry.enter("forward")
        key = [self.config.seed, self.train_state.step, number * self.context.world_size + self.context.rank]
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))
        batch = batch.to(self.context.device)
        images_BCHW, labels = batch.images_BCHW, batch.labels_B
        if self.mix:
            images_BCHW, labels = self.mix(images_BCHW, labels, *key)
        return self.engine.micro_step(images_BCHW, labels, loss_scale)

    def _tell(self, report: Report, loss: float, norm: float, rate: float) -> None:
        step, metrics = self.train_state.step, None
        if self.loss_spikes.is_spike(loss):
            report.say(f"warning: loss spike at step {step}: {loss:.4f}")
        if step % self.config.training.log_every == 0:
            self._count_bad_samples(report)
            metrics = {"train/loss": loss, "train/lr": rate, "train/gradient_norm": norm, **self.throughput.take()}
            metrics |= self.telemetry.take(metrics["train/images_per_s"])
            if self.train_state.loss_scale:
                metrics["train/loss_scale"] = self.train_state.loss_scale.factor
            if self.config.data.on_bad_sample == "skip":
                metrics["train/bad_samples"] = float(self.bad_samples.total)
            if self.config.training.on_non_finite != "raise":
                metrics["train/non_finite"] = float(self.train_state.non_finite)
        report.step(step, self.epoch, metrics)

    def _lower_loss_scale(self, report: Report, scale: LossScale) -> None:
        """Pass over a global batch whose gradients are too large for fp16 at this scale."""
        self.engine.skip_step()
        lower = scale.after_overflow()
        self.train_state = replace(self.train_state, step=self.train_state.step + 1, loss_scale=lower)
        report.say(
            f"fp16: a gradient overflowed at step {self.train_state.step}, which is passed over; the loss scale is now {lower.factor:g}"
        )
        report.step(self.train_state.step, self.epoch, None)

    def _go_past(self, report: Report, batches: list[Batch], losses: list[torch.Tensor]) -> None:
        """Leave out a global batch whose loss or gradient is not finite. Raises NonFiniteError on all ranks where that is not allowed."""
        training, step = self.config.training, self.train_state.step + 1
        listed = anomalies.write_down(self.run_dir, step, batches, losses, self.context)
        found, count = f"the loss or a gradient is not finite at step {step}", self.train_state.non_finite + 1
        if training.on_non_finite == "raise" or count > training.max_non_finite:
            allowed = f" and more than training.max_non_finite ({training.max_non_finite}) were skipped" if count > 1 else ""
            raise anomalies.NonFiniteError(
                f"{found}{allowed}; the weights are from before, the samples are listed in {listed}. Lower optimizer.base_lr, set "
                f"training.clip_grad, use training.precision=fp32, or go past such steps with training.on_non_finite=skip or rewind."
            )
        self.engine.skip_step()
        report.say(f"warning: {found}; skipped ({count} so far), its samples are listed in {listed}")
        if training.on_non_finite == "rewind":
            self._rewind(report)
        self.train_state = replace(self.train_state, step=step, non_finite=count)
        report.step(step, self.epoch, None)

    def _rewind(self, report: Report) -> None:
        """Take back the weights of the last checkpoint; the place in the data stays."""
        if failure := self.writer.finish():
            report.say(f"warning: {failure}")
        if not self.context.broadcast(store.has_any(self.run_dir)):
            report.say("warning: there is no checkpoint to rewind to yet; going on with the weights as they are")
            return
        checkpoint, train_state, _ = latest_valid(self.run_dir, self.context)
        del self.engine
        self.engine, _ = load(self.config, checkpoint, train_state, self.context)
        self.train_state = replace(self.train_state, updates=train_state.updates)
        report.say(f"rewound to the weights of {checkpoint.name}")

    def _count_bad_samples(self, report: Report) -> None:
        for sentence in self.bad_samples.add_up():
            report.say(f"skipped: {sentence}")
        self.train_state = replace(self.train_state, bad_samples=self.bad_samples.total)

    def evaluate_and_save(self, report: Report) -> None:
        """Evaluate the epoch just finished; if told to stop meanwhile, leave it to the resume."""
        try:
            result = self._evaluate()
            averaged = self._evaluate_average() if self.engine.has_average else None
        except Stopped:
            return
        top1 = (averaged or result).top1
        is_best = top1 > self.train_state.best_top1
        self.train_state = replace(
            self.train_state,
            evaluated_epochs=self.train_state.evaluated_epochs + 1,
            best_top1=max(top1, self.train_state.best_top1),
            metrics={"top1": result.top1, "top5": result.top5, "loss": result.loss} | ({"top1_ema": averaged.top1} if averaged else {}),
        )
        report.evaluation(self.train_state.step, self.train_state.evaluated_epochs, result, averaged)
        self._save(report, is_best=is_best, at_end=self.is_done())

    def _evaluate(self) -> Evaluation:
        model, size = self.engine.model_with_loss, self.config.training.eval_batch
        batches = evaluation_batches(self.config.data, self.val_set, batch=size, rank=self.context.rank, world_size=self.context.world_size)
        model.eval()
        try:
            return evaluate(self.engine.logits, batches, self.context, should_stop=lambda: bool(self.stop))
        finally:
            model.train()

    def _evaluate_average(self) -> Evaluation:
        with self.engine.averaged():
            return self._evaluate()

    def saves_and_is_told_to_stop(self, report: Report) -> bool:
        """At the border of two steps, where all ranks agree."""
        stop, time_is_up = self.context.any(bool(self.stop), self.writer.time_is_up())
        if stop or time_is_up or self.writer.is_due(self.train_state.step):
            self._save(report, at_end=stop)
        return stop

    def _save(self, report: Report, *, is_best: bool = False, at_end: bool = False) -> None:
        """Save the state, unless this very state is saved already. at_end: nothing follows, so that a failure is an error."""
        with self.throughput.saving():
            failure = self.writer.finish()
            if failure:
                report.say(f"warning: {failure}")
            if failure or self.saved != self.train_state:
                self._count_bad_samples(report)
                self.writer.save(self._state(), is_best=is_best)
                self.saved = self.train_state
            if at_end:
                self.writer.finish(raising=True)

    def _state(self) -> Snapshot:
        engine = self.engine
        average = engine.average_state() if engine.has_average else None
        return Snapshot(self.train_state, engine.model_state(), engine.optimizer_state(), average)

    def outcome(self, stopped: bool) -> Outcome:
        parameters = sum(getattr(p, "ds_numel", p.numel()) for p in self.engine.model_with_loss.parameters())
        checkpoint = place_of(self.root, self.train_state.step)
        return Outcome(self.train_state, stopped, self.throughput.overall(), parameters, checkpoint)
