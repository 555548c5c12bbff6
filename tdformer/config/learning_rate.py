"""Computes the learning rate of each optimizer step. It is a pure function of the step, so there is no schedule state to save."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean

from tdformer.config.schema import RunConfig
from tdformer.config.training import OptimizerConfig

MANY_STEPS = 100_000
"""Stands for the steps of an epoch where they are not known."""


@dataclass(frozen=True)
class Schedule:
    """The learning rates of a run: linear warm-up, a cosine from the peak to the floor, and epochs at the floor."""

    optimizer: OptimizerConfig
    peak: float
    epochs: int
    steps_per_epoch: int

    def at(self, step: int) -> float:
        """Return the learning rate of optimizer step `step`, counted from 0."""
        # Time is counted in steps, or in whole epochs. The cosine begins after the warm-up, or, as timm has it, with the run.
        by_epoch, optimizer = self.optimizer.schedule == "epoch", self.optimizer
        now, unit = (step // self.steps_per_epoch, 1) if by_epoch else (step, self.steps_per_epoch)
        warmup, end = optimizer.warmup_epochs * unit, (self.epochs - optimizer.cooldown_epochs) * unit
        if now < warmup:
            if optimizer.warmup_lr is None:
                return self.peak * (now + 1) / (warmup + 1)
            return optimizer.warmup_lr + (self.peak - optimizer.warmup_lr) * now / warmup
        start = 0 if by_epoch else warmup
        progress = min((now - start) / max(end - start, 1), 1.0)
        return optimizer.min_lr + (self.peak - optimizer.min_lr) * (1 + math.cos(math.pi * progress)) / 2

    @cached_property
    def highest(self) -> float:
        """The highest learning rate that the run reaches: the peak, unless the run is too short or its rate changes by epoch."""
        warmup, last = math.ceil(self.optimizer.warmup_epochs * self.steps_per_epoch), self.epochs * self.steps_per_epoch - 1
        return max(self.at(step) for step in (0, warmup - 1, warmup, last) if 0 <= step <= last)

    def means_by_epoch(self) -> Iterator[float]:
        """Yield the mean learning rate over the steps of each epoch."""
        for epoch in range(self.epochs):
            first = epoch * self.steps_per_epoch
            yield fmean(map(self.at, range(first, first + self.steps_per_epoch)))


def schedule_of(config: RunConfig, steps_per_epoch: int | None) -> Schedule:
    """Return the schedule of a run. steps_per_epoch: None if it is not known; the rates are then right to a hundred-thousandth."""
    return Schedule(config.optimizer, config.learning_rate(), config.training.epochs, steps_per_epoch or MANY_STEPS)
