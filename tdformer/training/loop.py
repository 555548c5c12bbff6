"""The training loop, and the state that it moves from step to step."""

from __future__ import annotations

import itertools
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from data_pipelines.augment import Mix
from data_pipelines.batch import Batch
from data_pipelines.loading import evaluation_batches, train_batches, train_order
from tdformer.config import RunConfig
from tdformer.config_io import dump_config
from tdformer.datasets import notes_on, open_data
from tdformer.evaluation import Evaluation, Stopped, evaluate
from tdformer.ranks import Ranks
from tdformer.training import anomalies, checkpoints
from tdformer.training.bad_samples import BadSamples
from tdformer.training.checkpoints import Position, TrainState, place_of
from tdformer.training.global_batch import is_finite
from tdformer.training.loss_scale import LossScale
from tdformer.training.optim import learning_rate_at
from tdformer.training.preemption import StopFlag, stopping
from tdformer.training.report import Report, Throughput, reporting
from tdformer.training.saving import Saver
from tdformer.training.start import load, newest_whole, start_or_resume
from tdformer.training.telemetry import make_telemetry


@dataclass(frozen=True)
class Outcome:
    """How training ended."""

    position: Position
    stopped: bool
    """True if a signal ended it before its last epoch; its state is saved."""
    images_per_s: float
    parameters: int
    checkpoint: Path


def train(config: RunConfig, run_dir: Path, ranks: Ranks) -> Outcome:
    """Train a run from its beginning, or from its latest checkpoint, to its end or to a stop signal.

    Raises UserError, on all ranks alike, for what a user can mend.
    """
    with stopping(config.preemption) as stop:
        trainer = Trainer(config, run_dir, ranks, stop)
        with closing(trainer), reporting(config, run_dir, trainer.position, trainer.total_steps, ranks) as report:
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

    def __init__(self, config: RunConfig, run_dir: Path, ranks: Ranks, stop: StopFlag) -> None:
        self.config, self.run_dir, self.ranks, self.stop = config, run_dir, ranks, stop
        self.root = run_dir / "checkpoints"
        self.train_set, self.val_set = ranks.together(lambda: open_data(config))
        training = config.training
        sizes = {"global_batch": training.global_batch, "micro_batch": training.micro_batch}
        self.order = train_order(config.data, self.train_set, config.seed, **sizes, rank=ranks.rank, world=ranks.world)
        self.total_steps = training.epochs * self.order.steps_per_epoch
        self.engine, self.position, notes = start_or_resume(config, run_dir, self.train_set, ranks)
        self.notes = notes_on(config, self.train_set, self.val_set) + notes
        self.saved: Position | None = self.position if self.position.step else None
        self.saver = Saver(self.root, config.checkpoint, dump_config(config), ranks)
        self.bad_samples = BadSamples(self.position.bad_samples, config.data.max_bad_samples, ranks)
        self.mix = Mix(config.data.augment, config.model.num_classes) if config.data.augment.mixes else None
        self.batches = train_batches(config.data, self.train_set, self.order, self.position.step, self.total_steps)
        self.loss_spikes = anomalies.LossSpikes()
        self.throughput = Throughput()
        self.telemetry = make_telemetry(config, run_dir, ranks)

    def close(self) -> None:
        self.batches.close()
        self.saver.close()
        self.telemetry.close()

    def announce(self, report: Report) -> None:
        training, order = self.config.training, self.order
        report.say(
            f"{len(self.train_set)} training and {len(self.val_set)} validation images; global batch {training.global_batch} = "
            f"{training.micro_batch} x {self.ranks.world} ranks x {order.accumulation} accumulation; "
            f"{order.steps_per_epoch} steps per epoch"
            + (f", {order.left_out} images (others in each epoch) are left out to make steps equal" if order.left_out else "")
        )
        for note in self.notes:
            report.say(note)
        if self.position.step:
            epoch, consumed = order.position(self.position.step)
            place = f"epoch {epoch + 1}, {consumed} of its images seen"
            report.say(f"resumed at step {self.position.step} of {self.total_steps} ({place})")

    # --- where we are ----------------------------------------------------------------------------------------

    @property
    def epoch(self) -> float:
        return self.position.step / self.order.steps_per_epoch

    def is_done(self) -> bool:
        return self.position.evaluated_epochs == self.config.training.epochs

    def evaluation_is_due(self) -> bool:
        return self.position.step == (self.position.evaluated_epochs + 1) * self.order.steps_per_epoch

    def learning_rate(self) -> float:
        optimizer, per_epoch = self.config.optimizer, self.order.steps_per_epoch
        return learning_rate_at(
            self.position.step,
            peak=self.config.learning_rate(),
            floor=optimizer.min_lr,
            warmup_steps=optimizer.warmup_epochs * per_epoch,
            total_steps=self.total_steps,
        )

    # --- what is done there ----------------------------------------------------------------------------------

    def step(self, report: Report) -> None:
        """One optimizer step: this rank's micro-batches of the next global batch."""
        rate, scale = self.learning_rate(), self.position.loss_scale.factor if self.position.loss_scale else 1.0
        images = self.config.training.global_batch
        with self.telemetry.step(self.position.step + 1, self.engine.objective), self.throughput.training(images):
            with self.throughput.waiting():
                batches = self.ranks.together(lambda: list(itertools.islice(self.batches, self.order.accumulation)))
            losses = [self._micro_step(number, batch, scale) for number, batch in enumerate(batches)]
            self.telemetry.enter("communication")
            loss, norm = self.engine.reduce(scale)
            self.telemetry.enter("optimizer")
            if is_finite(loss, norm):
                self.engine.apply(rate, norm)
        self.bad_samples.note(batches)
        if is_finite(loss, norm):
            grown = self.position.loss_scale and self.position.loss_scale.after_step()
            self.position = replace(self.position, step=self.position.step + 1, updates=self.position.updates + 1, loss_scale=grown)
            self._tell(report, loss, norm, rate)
        elif self.position.loss_scale and self.position.loss_scale.can_fall:
            self._lower_loss_scale(report, self.position.loss_scale)
        else:
            self._go_past(report, batches, losses)

    def _micro_step(self, number: int, batch: Batch, loss_scale: float) -> torch.Tensor:
        """Random draws of a micro-batch (drop path) depend on (seed, step, its number in the global batch), not on its rank."""
        self.telemetry.enter("forward")
        key = [self.config.seed, self.position.step, number * self.ranks.world + self.ranks.rank]
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))
        batch = batch.to(self.ranks.device)
        images_BCHW, labels = batch.images_BCHW, batch.labels_B
        if self.mix:
            images_BCHW, labels = self.mix(images_BCHW, labels, *key)
        return self.engine.micro_step(images_BCHW, labels, loss_scale)

    def _tell(self, report: Report, loss: float, norm: float, rate: float) -> None:
        step, metrics = self.position.step, None
        if self.loss_spikes.is_spike(loss):
            report.say(f"warning: loss spike at step {step}: {loss:.4f}")
        if step % self.config.training.log_every == 0:
            self._count_bad_samples(report)
            metrics = {"train/loss": loss, "train/lr": rate, "train/gradient_norm": norm, **self.throughput.take()}
            metrics |= self.telemetry.take(metrics["train/images_per_s"])
            if self.position.loss_scale:
                metrics["train/loss_scale"] = self.position.loss_scale.factor
            if self.config.data.on_bad_sample == "skip":
                metrics["train/bad_samples"] = float(self.bad_samples.total)
            if self.config.training.on_non_finite != "raise":
                metrics["train/non_finite"] = float(self.position.non_finite)
        report.step(step, self.epoch, metrics)

    def _lower_loss_scale(self, report: Report, scale: LossScale) -> None:
        """Pass over a global batch whose gradients are too large for fp16 at this scale."""
        self.engine.discard()
        lower = scale.after_overflow()
        self.position = replace(self.position, step=self.position.step + 1, loss_scale=lower)
        report.say(
            f"fp16: a gradient overflowed at step {self.position.step}, which is passed over; the loss scale is now {lower.factor:g}"
        )
        report.step(self.position.step, self.epoch, None)

    def _go_past(self, report: Report, batches: list[Batch], losses: list[torch.Tensor]) -> None:
        """Leave out a global batch whose loss or gradient is not finite. Raises NonFiniteError on all ranks where that is not allowed."""
        training, step = self.config.training, self.position.step + 1
        listed = anomalies.write_down(self.run_dir, step, batches, losses, self.ranks)
        found, count = f"the loss or a gradient is not finite at step {step}", self.position.non_finite + 1
        if training.on_non_finite == "raise" or count > training.max_non_finite:
            allowed = f" and more than training.max_non_finite ({training.max_non_finite}) were skipped" if count > 1 else ""
            raise anomalies.NonFiniteError(
                f"{found}{allowed}; the weights are from before, the samples are listed in {listed}. Lower optimizer.base_lr, set "
                f"training.clip_grad, use training.precision=fp32, or go past such steps with training.on_non_finite=skip or rewind."
            )
        self.engine.discard()
        report.say(f"warning: {found}; skipped ({count} so far), its samples are listed in {listed}")
        if training.on_non_finite == "rewind":
            self._rewind(report)
        self.position = replace(self.position, step=step, non_finite=count)
        report.step(step, self.epoch, None)

    def _rewind(self, report: Report) -> None:
        """Take back the weights of the last checkpoint; the place in the data stays."""
        if failure := self.saver.finish():
            report.say(f"warning: {failure}")
        if not self.ranks.from_first(checkpoints.has_any(self.run_dir)):
            report.say("warning: there is no checkpoint to rewind to yet; going on with the weights as they are")
            return
        checkpoint, position, _ = newest_whole(self.run_dir, self.ranks)
        del self.engine
        self.engine, _ = load(self.config, checkpoint, position, self.ranks)
        self.position = replace(self.position, updates=position.updates)
        report.say(f"rewound to the weights of {checkpoint.name}")

    def _count_bad_samples(self, report: Report) -> None:
        for sentence in self.bad_samples.add_up():
            report.say(f"skipped: {sentence}")
        self.position = replace(self.position, bad_samples=self.bad_samples.total)

    def evaluate_and_save(self, report: Report) -> None:
        """Evaluate the epoch just finished; if told to stop meanwhile, leave it to the resume."""
        try:
            result = self._evaluate()
            averaged = self._evaluate_average() if self.engine.has_average else None
        except Stopped:
            return
        top1 = (averaged or result).top1
        is_best = top1 > self.position.best_top1
        self.position = replace(
            self.position,
            evaluated_epochs=self.position.evaluated_epochs + 1,
            best_top1=max(top1, self.position.best_top1),
            metrics={"top1": result.top1, "top5": result.top5, "loss": result.loss} | ({"top1_ema": averaged.top1} if averaged else {}),
        )
        report.evaluation(self.position.step, self.position.evaluated_epochs, result, averaged)
        self._save(report, is_best=is_best, at_end=self.is_done())

    def _evaluate(self) -> Evaluation:
        model, size = self.engine.objective, self.config.training.eval_batch
        batches = evaluation_batches(self.config.data, self.val_set, batch=size, rank=self.ranks.rank, world=self.ranks.world)
        model.eval()
        try:
            return evaluate(self.engine.logits, batches, self.ranks, should_stop=lambda: bool(self.stop))
        finally:
            model.train()

    def _evaluate_average(self) -> Evaluation:
        with self.engine.averaged():
            return self._evaluate()

    def saves_and_is_told_to_stop(self, report: Report) -> bool:
        """At the border of two steps, where all ranks agree."""
        stop, time_is_up = self.ranks.any_of(bool(self.stop), self.saver.time_is_up())
        if stop or time_is_up or self.saver.is_due(self.position.step):
            self._save(report, at_end=stop)
        return stop

    def _save(self, report: Report, *, is_best: bool = False, at_end: bool = False) -> None:
        """Save the state, unless this very state is saved already. at_end: nothing follows, so that a failure is an error."""
        with self.throughput.saving():
            failure = self.saver.finish()
            if failure:
                report.say(f"warning: {failure}")
            if failure or self.saved != self.position:
                self._count_bad_samples(report)
                self.saver.save(self._state(), is_best=is_best)
                self.saved = self.position
            if at_end:
                self.saver.finish(raising=True)

    def _state(self) -> TrainState:
        engine = self.engine
        average = engine.average_state() if engine.has_average else None
        return TrainState(self.position, engine.model_state(), engine.optimizer_state(), average)

    def outcome(self, stopped: bool) -> Outcome:
        parameters = sum(getattr(p, "ds_numel", p.numel()) for p in self.engine.objective.parameters())
        checkpoint = place_of(self.root, self.position.step)
        return Outcome(self.position, stopped, self.throughput.overall(), parameters, checkpoint)
