"""Assigns the samples of each step to ranks and micro-batches.

Step k of an epoch takes the k-th run of `global_batch` samples of the epoch's order. The run is cut into consecutive micro-batches.
Micro-batch `a * world_size + rank` goes to `rank`, as the a-th one that it accumulates. So neither the samples of a step nor their
grouping into micro-batches depend on the number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from data_pipelines.loading.sample_order import Shuffle

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

    An epoch visits each sample at most once. The last `samples % global_batch` samples of its order are dropped, so that all ranks
    take the same number of equal steps. Each epoch drops other samples.
    """

    shuffle: Shuffle
    global_batch: int
    micro_batch: int
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        assert self.global_batch % (self.micro_batch * self.world_size) == 0
        assert self.shuffle.samples >= self.global_batch

    @property
    def steps_per_epoch(self) -> int:
        """The number of optimizer steps per epoch."""
        return self.shuffle.samples // self.global_batch

    @property
    def dropped_samples(self) -> int:
        """The number of samples that an epoch does not visit."""
        return self.shuffle.samples % self.global_batch

    @property
    def accumulation(self) -> int:
        """The number of micro-batches that each rank accumulates before an optimizer step."""
        return self.global_batch // (self.micro_batch * self.world_size)

    def cursor(self, step: int) -> DataCursor:
        """The cursor before a step. Steps count from 0 at the start of training."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        return DataCursor(epoch, step_in_epoch * self.global_batch)

    def micro_batches(self, order: np.ndarray, consumed: int) -> list[np.ndarray]:
        """Cut one step's samples into this rank's micro-batches, in the order in which it takes them.

        order: the sample order of the epoch. consumed: samples that earlier steps of the epoch used.
        """
        of_step = order[consumed : consumed + self.global_batch].reshape(-1, self.micro_batch)
        return list(of_step[self.rank :: self.world_size])

    def iterate_steps(self, first_step: int, last_step: int) -> Iterator[list[tuple[int, int]]]:
        """Yield this rank's micro-batches of the steps first_step … last_step - 1, each as (epoch, sample) pairs."""
        ordered_epoch = -1
        for step in range(first_step, last_step):
            epoch, consumed = self.cursor(step)
            if epoch != ordered_epoch:
                order, ordered_epoch = self.shuffle.order(epoch), epoch
            for samples in self.micro_batches(order, consumed):
                yield [(epoch, sample) for sample in samples.tolist()]


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
