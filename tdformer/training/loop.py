"""The training loop, and the state that it moves from step to step."""

from __future__ import annotations

import itertools
import math
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from data_pipelines.augment import Mix
from data_pipelines.batch import Batch
from data_pipelines.errors import UserError
from data_pipelines.loading import evaluation_batches, train_batches, train_order
from tdformer.config import RunConfig
from tdformer.config_io import dump_config
from tdformer.datasets import notes_on, open_data
from tdformer.evaluation import Evaluation, Stopped, averaged_statistics, evaluate
from tdformer.models.pretrained import start_from
from tdformer.ranks import Ranks
from tdformer.training import checkpoints
from tdformer.training.bad_samples import BadSamples
from tdformer.training.checkpoints import Position, Snapshot
from tdformer.training.engine import Engine
from tdformer.training.objective import Objective
from tdformer.training.optim import learning_rate_at
from tdformer.training.preemption import StopFlag, stop_on_signals
from tdformer.training.report import Report, Throughput, reporting


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
    with stop_on_signals() as stop:
        trainer = Trainer(config, run_dir, ranks, stop)
        with closing(trainer.batches), reporting(config, run_dir, trainer.position, trainer.total_steps, ranks) as report:
            trainer.announce(report)
            while not trainer.is_done():
                if trainer.evaluation_is_due():
                    trainer.evaluate_and_save(report)
                else:
                    trainer.step(report)
                    if trainer.save_is_due():
                        trainer.save(report)
                if ranks.largest(int(bool(stop))):
                    trainer.save(report)
                    report.stopped()
                    return trainer.outcome(stopped=True)
            return trainer.outcome(stopped=False)


class Trainer:
    """A run in progress: data, engine and position."""

    def __init__(self, config: RunConfig, run_dir: Path, ranks: Ranks, stop: StopFlag) -> None:
        self.config, self.ranks, self.stop = config, ranks, stop
        self.root = run_dir / "checkpoints"
        self.train_set, self.val_set = ranks.together(lambda: open_data(config))
        training = config.training
        sizes = {"global_batch": training.global_batch, "micro_batch": training.micro_batch}
        self.order = train_order(config.data, self.train_set, config.seed, **sizes, rank=ranks.rank, world=ranks.world)
        self.total_steps = training.epochs * self.order.steps_per_epoch
        self.notes = notes_on(config, self.train_set)
        self.engine, self.position = self._start_or_resume(run_dir)
        self.saved: Position | None = self.position if self.position.step else None
        self.bad_samples = BadSamples(self.position.bad_samples, config.data.max_bad_samples, ranks)
        self.mix = Mix(config.data.augment, config.model.num_classes) if config.data.augment.mixes else None
        self.batches = train_batches(config.data, self.train_set, self.order, self.position.step, self.total_steps)
        self.unchecked_losses: list[torch.Tensor] = []
        self.throughput = Throughput()

    # --- starting --------------------------------------------------------------------------------------------

    def _start_or_resume(self, run_dir: Path) -> tuple[Engine, Position]:
        torch.manual_seed(self.config.seed)
        training = self.config.training
        objective = Objective(self.config.model, training.label_smoothing, training.recompute).to(self.ranks.device)
        if not self.ranks.from_first(checkpoints.has_any(run_dir)):
            self.ranks.together(lambda: self._load_initial(objective))
            return Engine(objective, self.config, self.ranks), Position(
                world=self.ranks.world, samples=len(self.train_set), classes=self.train_set.classes, data=self.train_set.digest()
            )
        checkpoint = self.ranks.together(lambda: checkpoints.find(run_dir))
        checked = self.ranks.together(lambda: checkpoints.check(checkpoint) if self.ranks.is_first else None)
        position = self.ranks.from_first(checked)
        self._check_data(position)
        self.ranks.together(lambda: checkpoints.load_model(checkpoint, objective.model))
        if position.world == self.ranks.world:
            checkpoints.load_statistics(checkpoint, objective.model, self.ranks.rank)
        engine = Engine(objective, self.config, self.ranks)
        engine.load_optimizer_state(self.ranks.together(lambda: checkpoints.load_optimizer(checkpoint)), position.step)
        return engine, replace(position, world=self.ranks.world)

    def _load_initial(self, objective: Objective) -> None:
        if self.config.init is not None:
            fresh = start_from(objective.model, self.config.init)
            self.notes.append(f"started from the weights in {self.config.init}; {len(fresh)} tensors start fresh")

    def _check_data(self, position: Position) -> None:
        """A position in an epoch means something only for the samples, in the order, that it was counted on; not for a format."""
        if position.data == self.train_set.digest() and position.classes == self.train_set.classes:
            return
        if (position.samples, position.classes) != (len(self.train_set), self.train_set.classes):
            raise UserError(
                f"{self.config.data.train} holds {len(self.train_set)} samples of {len(self.train_set.classes)} classes, the run began "
                f"on {position.samples} of {len(position.classes)} or other classes; give data.train the set that it began on."
            )
        raise UserError(
            f"{self.config.data.train} holds other samples than the run began on, or stores them in another order (another --seed or "
            f"--samples-per-shard when it was prepared); give data.train the set that it began on, in any format."
        )

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

    def save_is_due(self) -> bool:
        every = self.config.checkpoint.every_steps
        return every is not None and self.position.step % every == 0

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
        rate = self.learning_rate()
        with self.throughput.training(self.config.training.global_batch):
            with self.throughput.waiting():
                micro_batches = self.ranks.together(lambda: list(itertools.islice(self.batches, self.order.accumulation)))
            losses = [self._micro_step(number, batch, rate) for number, batch in enumerate(micro_batches)]
        self.bad_samples.note(micro_batches)
        self.unchecked_losses += losses
        self.position = replace(self.position, step=self.position.step + 1)
        is_logged = self.position.step % self.config.training.log_every == 0
        if is_logged:
            self._count_bad_samples(report)
        report.step(self.position.step, self.epoch, self._step_metrics(losses, rate) if is_logged else None)

    def _count_bad_samples(self, report: Report) -> None:
        for sentence in self.bad_samples.add_up():
            report.say(f"skipped: {sentence}")
        self.position = replace(self.position, bad_samples=self.bad_samples.total)

    def _micro_step(self, number: int, batch: Batch, rate: float) -> torch.Tensor:
        """Random draws of a micro-batch (drop path) depend on (seed, step, its number in the global batch), not on its rank."""
        key = [self.config.seed, self.position.step, number * self.ranks.world + self.ranks.rank]
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))
        batch = batch.to(self.ranks.device)
        images_BCHW, labels = batch.images_BCHW, batch.labels_B
        if self.mix:
            images_BCHW, labels = self.mix(images_BCHW, labels, *key)
        return self.engine.micro_step(images_BCHW, labels, rate)

    def _step_metrics(self, losses: list[torch.Tensor], rate: float) -> dict[str, float]:
        """Loss is the mean over this step's global batch, so that it does not depend on when the run was interrupted."""
        self._check_finite()
        loss = self.ranks.sum(torch.stack(losses).double().mean()).item() / self.ranks.world
        norm = self.engine.gradient_norm()
        metrics = {"train/loss": loss, "train/lr": rate, **self.throughput.take()}
        if self.config.data.on_bad_sample == "skip":
            metrics["train/bad_samples"] = float(self.bad_samples.total)
        return metrics if norm is None else metrics | {"train/gradient_norm": norm}

    def _check_finite(self) -> None:
        """Raise on all ranks if any loss since the last check was not finite: such a state must not be saved as good."""
        if not self.unchecked_losses:
            return
        total = self.ranks.sum(torch.stack(self.unchecked_losses).double().sum()).item()
        self.unchecked_losses = []
        if not math.isfinite(total):
            raise UserError(
                f"the loss is no longer finite at step {self.position.step}; lower optimizer.base_lr, set training.clip_grad or use "
                f"training.precision=fp32 in a new run (the checkpoints in {self.root} are from before)."
            )

    def evaluate_and_save(self, report: Report) -> None:
        """Evaluate the epoch just finished; if told to stop meanwhile, leave it to the resume."""
        try:
            result = self._evaluate()
        except Stopped:
            return
        is_best = result.top1 > self.position.best_top1
        self.position = replace(
            self.position,
            evaluated_epochs=self.position.evaluated_epochs + 1,
            best_top1=max(result.top1, self.position.best_top1),
            metrics={"top1": result.top1, "top5": result.top5, "loss": result.loss},
        )
        report.evaluation(self.position.step, self.position.evaluated_epochs, result)
        self.save(report, is_best)

    def _evaluate(self) -> Evaluation:
        model, size = self.engine.objective, self.config.training.eval_batch
        batches = evaluation_batches(self.config.data, self.val_set, batch=size, rank=self.ranks.rank, world=self.ranks.world)
        model.eval()
        with averaged_statistics(model, self.ranks):
            try:
                return evaluate(self.engine.logits, batches, self.ranks, should_stop=lambda: bool(self.stop))
            finally:
                model.train()

    def save(self, report: Report, is_best: bool = False) -> None:
        """Save the state, unless this very state is saved already."""
        if self.saved == self.position:
            return
        self._check_finite()
        self._count_bad_samples(report)
        model = self.engine.objective.model
        parameters, optimizer = self.engine.parameters(), self.engine.optimizer_state()
        statistics = self.ranks.to_first({name: buffer.cpu() for name, buffer in model.named_buffers()})
        with averaged_statistics(model, self.ranks):
            averaged = {name: buffer.to("cpu", copy=True) for name, buffer in model.named_buffers()}
        snapshot = Snapshot(self.position, parameters | averaged, optimizer, statistics)
        config, keep = dump_config(self.config), self.config.checkpoint.keep_last
        first = self.ranks.is_first
        self.ranks.together(lambda: checkpoints.save(self.root, snapshot, config, is_best=is_best, keep_last=keep) if first else None)
        self.saved = self.position

    def outcome(self, stopped: bool) -> Outcome:
        parameters = sum(getattr(p, "ds_numel", p.numel()) for p in self.engine.objective.parameters())
        checkpoint = self.root / f"step-{self.position.step:08d}"
        return Outcome(self.position, stopped, self.throughput.overall(), parameters, checkpoint)
