"""Which samples, in which order, for which rank: pure functions of (seed, epoch, world).

The order of an epoch is one permutation of all samples. Step k of the epoch consumes the k-th
run of `global_batch` samples of it; that run is cut into consecutive micro-batches, and micro-batch
`a * world + rank` goes to `rank` as the a-th of its accumulation. So neither the samples of a step nor
their grouping into micro-batches depend on the number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from data_pipelines.loading.sample_order import Shuffle

PADDING = -1
"""Index of an evaluation slot that holds no sample."""


class DataCursor(NamedTuple):
    """Where training stands in the data: what a resume needs to know."""

    epoch: int
    consumed: int
    """Samples of this epoch's order that were used, over all ranks."""


@dataclass(frozen=True)
class TrainSampler:
    """The micro-batches of one rank, over all epochs.

    Every epoch visits each sample at most once; the last `samples % global_batch` of its order are
    left out (another set in each epoch), so that all ranks take the same number of equal steps.
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
        return self.shuffle.samples // self.global_batch

    @property
    def left_out(self) -> int:
        """Samples that an epoch does not visit, to make its steps equal."""
        return self.shuffle.samples % self.global_batch

    @property
    def accumulation(self) -> int:
        """Micro-batches that each rank adds up before an optimizer step."""
        return self.global_batch // (self.micro_batch * self.world_size)

    def cursor(self, step: int) -> DataCursor:
        """Before the given step, counted from the start of training."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        return DataCursor(epoch, step_in_epoch * self.global_batch)

    def micro_batches(self, order: np.ndarray, consumed: int) -> list[np.ndarray]:
        """This rank's micro-batches of the step after `consumed` samples, in the order in which it takes them."""
        of_step = order[consumed : consumed + self.global_batch].reshape(-1, self.micro_batch)
        return list(of_step[self.rank :: self.world_size])

    def from_step(self, first_step: int, last_step: int) -> Iterator[list[tuple[int, int]]]:
        """(epoch, sample) pairs of each micro-batch from global step first_step up to last_step."""
        ordered = -1
        for step in range(first_step, last_step):
            epoch, consumed = self.cursor(step)
            if epoch != ordered:
                order, ordered = self.shuffle.order(epoch), epoch
            for samples in self.micro_batches(order, consumed):
                yield [(epoch, sample) for sample in samples.tolist()]


def evaluation_samples(samples: int, rank: int, world_size: int) -> np.ndarray:
    """The samples that one rank evaluates: every world-th one, padded to equal length on all ranks.

    Equal lengths keep ranks in step where a forward pass communicates (ZeRO 3); PADDING slots are
    not counted.
    """
    padded = np.full(-(-samples // world_size) * world_size, PADDING)
    padded[:samples] = np.arange(samples)
    return padded[rank::world_size]
