"""Which samples, in which order, for which rank: pure functions of (seed, epoch, world).

The order of an epoch is one permutation of all samples. Step k of the epoch consumes the k-th
run of `global_batch` samples of it; that run is cut into consecutive micro-batches, and micro-batch
`a * world + rank` goes to `rank` as the a-th of its accumulation. So neither the samples of a step nor
their grouping into micro-batches depend on the number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

PADDING = -1
"""Index of an evaluation slot that holds no sample."""


def epoch_order(samples: int, seed: int, epoch: int) -> np.ndarray:
    """The sample order of one epoch: a permutation of range(samples), int64 [samples]."""
    return np.random.default_rng([seed, epoch]).permutation(samples)


@dataclass(frozen=True)
class TrainOrder:
    """The micro-batches of one rank, over all epochs.

    Every epoch visits each sample at most once; the last `samples % global_batch` of its order are
    left out (another set in each epoch), so that all ranks take the same number of equal steps.
    """

    samples: int
    seed: int
    global_batch: int
    micro_batch: int
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        assert self.global_batch % (self.micro_batch * self.world) == 0
        assert self.samples >= self.global_batch

    @property
    def steps_per_epoch(self) -> int:
        return self.samples // self.global_batch

    @property
    def accumulation(self) -> int:
        """Micro-batches that each rank adds up before an optimizer step."""
        return self.global_batch // (self.micro_batch * self.world)

    def micro_batches(self, order: np.ndarray, step_in_epoch: int) -> list[np.ndarray]:
        """This rank's micro-batches of one step, in the order in which it takes them."""
        start = step_in_epoch * self.global_batch
        of_step = order[start : start + self.global_batch].reshape(-1, self.micro_batch)
        return list(of_step[self.rank :: self.world])

    def from_step(self, first_step: int, last_step: int) -> Iterator[list[tuple[int, int]]]:
        """(epoch, sample index) pairs of each micro-batch from global step first_step up to last_step."""
        for epoch in range(first_step // self.steps_per_epoch, -(-last_step // self.steps_per_epoch)):
            order = epoch_order(self.samples, self.seed, epoch)
            epoch_start = epoch * self.steps_per_epoch
            for step in range(max(first_step, epoch_start), min(last_step, epoch_start + self.steps_per_epoch)):
                for indices in self.micro_batches(order, step - epoch_start):
                    yield [(epoch, int(index)) for index in indices]


def evaluation_indices(samples: int, rank: int, world: int) -> np.ndarray:
    """The samples that one rank evaluates: every world-th one, padded to equal length on all ranks.

    Equal lengths keep ranks in step where a forward pass communicates (ZeRO 3); PADDING slots are
    not counted.
    """
    padded = np.full(-(-samples // world) * world, PADDING)
    padded[:samples] = np.arange(samples)
    return padded[rank::world]
