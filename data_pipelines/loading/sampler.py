"""Which samples, in which order, for which rank: pure functions of (seed, epoch, world).

The order of an epoch is one permutation of all samples. Step k of the epoch consumes the k-th
run of `global_batch` samples of it; that run is cut into consecutive micro-batches, and micro-batch
`a * world + rank` goes to `rank` as the a-th of its accumulation. So neither the samples of a step nor
their grouping into micro-batches depend on the number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

PADDING = -1
"""Index of an evaluation slot that holds no sample."""


def full_order(samples: int, seed: int, epoch: int) -> np.ndarray:
    """All samples shuffled: a permutation of range(samples), int64 [samples]."""
    return np.random.default_rng([seed, epoch]).permutation(samples)


def block_order(blocks: Sequence[int], window: int, seed: int, epoch: int) -> np.ndarray:
    """Blocks shuffled, then the samples within each window of so many consecutive ones: int64 [sum(blocks)].

    blocks: how many samples each holds, in the order of storage. A disk that seeks slowly, or an object store, is read about
    `window` blocks at a time, each of them once per epoch. Our choice; the usual shuffle of streaming formats.
    """
    random = np.random.default_rng([seed, epoch])
    sizes = np.asarray(blocks, np.int64)
    starts = np.cumsum(sizes) - sizes
    shuffled = random.permutation(len(sizes))
    windows = [shuffled[first : first + window] for first in range(0, len(sizes), window)]
    return np.concatenate([random.permutation(_members(starts[these], sizes[these])) for these in windows])


def _members(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The samples of some blocks, one block after the other."""
    return np.concatenate([np.arange(start, start + size) for start, size in zip(starts, sizes, strict=True)])


@dataclass(frozen=True)
class Shuffle:
    """How an epoch is shuffled: everything at once, or, with a window, by blocks within windows of so many blocks."""

    seed: int
    blocks: tuple[int, ...]
    window: int | None = None

    @property
    def samples(self) -> int:
        return sum(self.blocks)

    def order(self, epoch: int) -> np.ndarray:
        """The sample order of one epoch: a permutation of range(samples), int64 [samples]."""
        if self.window is None:
            return full_order(self.samples, self.seed, epoch)
        return block_order(self.blocks, self.window, self.seed, epoch)


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
