"""Notices settings that do nothing because a run is too short for them. They are allowed, and hardly ever meant."""

from __future__ import annotations

import math
from collections.abc import Iterator

from tdformer.config.learning_rate import schedule_of
from tdformer.config.schema import CheckpointConfig, RunConfig

STEPS_TO_SETTLE = 3.0
"""The statistics of BatchNorm have settled after about this number, divided by their weight, of steps."""


def notes_on_length(config: RunConfig, samples: int | None) -> list[str]:
    """Return a note for each such setting. samples: size of the training set; None if it is not known, which leaves out some notes."""
    per_epoch = samples // config.training.global_batch if samples is not None else 0
    notes = list(_notes_on_rate(config, per_epoch))
    return notes + list(_notes_on_steps(config, per_epoch, per_epoch * config.training.epochs)) if per_epoch else notes


def _notes_on_rate(config: RunConfig, per_epoch: int) -> Iterator[str]:
    optimizer, peak = config.optimizer, config.learning_rate()
    if (warmup := optimizer.warmup_epochs) >= config.training.epochs - optimizer.cooldown_epochs:
        yield (
            f"optimizer.warmup_epochs is {warmup:g}, and training.epochs {config.training.epochs}: the learning rate ends at "
            f"{schedule_of(config, per_epoch).highest:.2e} and never comes to its peak of {peak:.2e}; lower optimizer.warmup_epochs"
        )
    if (off := config.data.augment.mix_off_epoch) is not None and off >= config.training.epochs:
        yield f"data.augment.mix_off_epoch is {off}, and training.epochs {config.training.epochs}: every epoch is mixed; lower it"
    if (floor := optimizer.min_lr) > peak:
        yield f"optimizer.min_lr is {floor:.2e}, above the peak of {peak:.2e}, so that the learning rate grows to the end; lower it"


def _notes_on_steps(config: RunConfig, per_epoch: int, total: int) -> Iterator[str]:
    of_run = f"and the run has {total} steps"
    if (log := config.training.log_every) > total:
        yield f"training.log_every is {log}, {of_run}: no metrics of training are written; lower it"
    if (decay := config.training.ema_decay) is not None and (horizon := 1 / (1 - decay)) > total:
        yield (
            f"training.ema_decay averages over about {horizon:.0f} steps, {of_run}: the averaged weights, by which `best` goes, stay near "
            f"the first ones; lower it to {max(1 - 10 / total, 0):.2g}"
        )
    if (settled := STEPS_TO_SETTLE / config.model.batch_norm_momentum) > total:
        yield (
            f"model.batch_norm_momentum is {config.model.batch_norm_momentum:g}, with which statistics settle in {settled:.0f} steps, "
            f"{of_run}: evaluation looks like chance; raise it"
        )
    if (trace := config.profiling.trace_steps) and trace[1] > total:
        yield f"profiling.trace_steps is {list(trace)}, {of_run}: no trace is written; name earlier steps"
    yield from _notes_on_checkpoints(config.checkpoint, of_run, per_epoch, total)


def _notes_on_checkpoints(checkpoint: CheckpointConfig, of_run: str, per_epoch: int, total: int) -> Iterator[str]:
    every, kept = checkpoint.every_steps, checkpoint.keep_every
    if every and every > total:
        yield f"checkpoint.every_steps is {every}, {of_run}: only the ends of epochs lead to checkpoints; lower it"
    if kept and not _meets(kept, (per_epoch, every), total):
        yield (
            f"checkpoint.keep_every is {kept}, {of_run}, {per_epoch} per epoch: no checkpoint is due at such a step; "
            f"make it a multiple of {every or per_epoch}, and at most {total}"
        )


def _meets(step: int, periods: tuple[int | None, ...], total: int) -> bool:
    """Tell whether a multiple of `step`, within the run, is also one of a period."""
    return any(period and math.lcm(step, period) <= total for period in periods)
