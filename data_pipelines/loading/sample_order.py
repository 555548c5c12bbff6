"""TODO."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


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
