"""Computes the order in which an epoch visits the samples: a pure function of (seed, epoch), the same for every world size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Shuffle:
    """How each epoch is shuffled. Without a window all samples are shuffled at once; with a window, block by block.

    blocks: sizes of the blocks of samples, in storage order. window: number of blocks that are shuffled together.
    """

    seed: int
    blocks: tuple[int, ...]
    window: int | None = None

    @property
    def samples(self) -> int:
        """The number of samples in the data set."""
        return sum(self.blocks)

    def order(self, epoch: int) -> np.ndarray:
        """The sample order of one epoch: a permutation of range(samples), int64 [samples]."""
        if self.window is None:
            return full_order(self.samples, self.seed, epoch)
        return block_order(self.blocks, self.window, self.seed, epoch)


def full_order(samples: int, seed: int, epoch: int) -> np.ndarray:
    """Shuffle all samples: a permutation of range(samples), int64 [samples]."""
    return np.random.default_rng([seed, epoch]).permutation(samples)


def block_order(blocks: Sequence[int], window: int, seed: int, epoch: int) -> np.ndarray:
    """Shuffle the blocks, then the samples within each window of consecutive blocks. Returns int64 [sum(blocks)].

    blocks: sizes of the blocks, in storage order. window: blocks per window.
    About `window` blocks are read at a time, each once per epoch. This suits object stores and disks that seek slowly.
    [our choice], as streaming formats usually shuffle.
    """
    random = np.random.default_rng([seed, epoch])
    sizes = np.asarray(blocks, np.int64)
    starts = np.cumsum(sizes) - sizes
    shuffled = random.permutation(len(sizes))
    windows = [shuffled[first : first + window] for first in range(0, len(sizes), window)]
    return np.concatenate([random.permutation(_samples_of(starts[these], sizes[these])) for these in windows])


def _samples_of(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """List the samples of some blocks, one block after the other."""
    return np.concatenate([np.arange(start, start + size) for start, size in zip(starts, sizes, strict=True)])
