"""Assigns the samples of each step to ranks and micro-batches.

Step k of an epoch takes the k-th run of `global_batch` samples of the epoch's order. The run is cut into consecutive micro-batches.
Micro-batch `a * world_size + rank` goes to `rank`, as the a-th one that it accumulates. So neither the samples of a step nor their
grouping into micro-batches depend on the number of ranks.

Repeated augmentation: a global batch holds each of its samples several times, all first copies before all second ones. Each copy is
augmented by draws of its own. An epoch has as many steps as without, and visits the fewer samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from data_pipelines.loading.sample_order import Shuffle

NEXT_COPY = 2**32
"""The difference between the draws of two copies of a sample in one epoch. It is larger than any epoch."""
PADDING = -1
"""The sample index of an evaluation slot that holds no sample."""


class DataCursor(NamedTuple):
    """The position of training in its data. It is all that a resumed run needs to go on with the next sample.

    consumed: samples of this epoch's order that were used, over all ranks.
    """

    epoch: int
    consumed: int


@dataclass(frozen=True)
class TrainSampler:
    """Yields the micro-batches of one rank, over all epochs.

    An epoch visits each sample at most once, or `repeats` times in one step. The last samples of its order are dropped, so that all ranks
    take the same number of equal steps. Each epoch drops other samples.
    """

    shuffle: Shuffle
    global_batch: int
    micro_batch: int
    rank: int = 0
    world_size: int = 1
    repeats: int = 1
    """The number of copies of a sample in its global batch."""

    def __post_init__(self) -> None:
        assert self.global_batch % (self.micro_batch * self.world_size) == 0
        assert self.global_batch % self.repeats == 0
        assert self.shuffle.samples >= self.global_batch

    @property
    def steps_per_epoch(self) -> int:
        """The number of optimizer steps per epoch."""
        return self.shuffle.samples // self.global_batch

    @property
    def dropped_samples(self) -> int:
        """The number of samples that an epoch does not visit."""
        return self.shuffle.samples - self.steps_per_epoch * (self.global_batch // self.repeats)

    @property
    def accumulation(self) -> int:
        """The number of micro-batches that each rank accumulates before an optimizer step."""
        return self.global_batch // (self.micro_batch * self.world_size)

    def cursor(self, step: int) -> DataCursor:
        """The cursor before a step. Steps count from 0 at the start of training."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        return DataCursor(epoch, step_in_epoch * self.global_batch)

    def micro_batches(self, order: np.ndarray, epoch: int, consumed: int) -> list[list[tuple[int, int]]]:
        """Cut one step's samples into this rank's micro-batches, in the order in which it takes them, each as (draw, sample) pairs.

        order: the sample order of the epoch. consumed: samples that earlier steps of the epoch used, each copy counted. A draw is a
        number that seeds the augmentation: the epoch, and for later copies of a sample other numbers.
        """
        samples, copy = self.global_batch // self.repeats, np.arange(self.repeats)
        first = consumed // self.repeats
        of_step = np.tile(order[first : first + samples], self.repeats).reshape(-1, self.micro_batch)
        draws = np.repeat(epoch + copy * NEXT_COPY, samples).reshape(-1, self.micro_batch)
        own = slice(self.rank, None, self.world_size)
        return [list(zip(*pair, strict=True)) for pair in zip(draws[own].tolist(), of_step[own].tolist(), strict=True)]

    def iterate_steps(self, first_step: int, last_step: int) -> Iterator[list[tuple[int, int]]]:
        """Yield this rank's micro-batches of the steps first_step … last_step - 1, each as (draw, sample) pairs."""
        ordered_epoch = -1
        for step in range(first_step, last_step):
            epoch, consumed = self.cursor(step)
            if epoch != ordered_epoch:
                order, ordered_epoch = self.shuffle.order(epoch), epoch
            yield from self.micro_batches(order, epoch, consumed)


def at_equal_distances(samples: int, count: int) -> np.ndarray:
    """Return `count` of the numbers 0 … samples - 1 at equal distances, or all if there are not more."""
    return np.arange(samples) if count >= samples else np.arange(count) * samples // count


def evaluation_samples(samples: int, rank: int, world_size: int, chosen: np.ndarray | None = None) -> np.ndarray:
    """List the samples that one rank evaluates: every world_size-th one, padded with PADDING to equal length on all ranks.

    Equal lengths keep the ranks in step, since a forward pass under ZeRO 3 communicates. Padding slots are not counted.
    chosen: the numbers of the samples that all ranks take together. None: all.
    """
    chosen = np.arange(samples) if chosen is None else chosen
    padded = np.full(-(-len(chosen) // world_size) * world_size, PADDING)
    padded[: len(chosen)] = chosen
    return padded[rank::world_size]
