"""The samples on which networks are analysed: the same ones for every network, each once over all ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from data_pipelines.config import DataConfig
from data_pipelines.loading.dataloader import evaluation_batches
from data_pipelines.loading.dataset import DataSet
from data_pipelines.storage.patience import NO_PATIENCE, Patience
from tdformer.distributed.context import DistContext


@dataclass(frozen=True)
class Part:
    """Some of the samples, on the rank's device."""

    images: torch.Tensor
    """Normalised images [B, C, H, W], or event frames [T, B, C, H, W]."""
    labels_B: torch.Tensor
    numbers_B: NDArray[np.int64]
    """The number of each sample among all that are analysed, from 0."""


@dataclass(frozen=True)
class Samples:
    """Some samples of a data set. Iterating gives this rank's, batch by batch.

    The ranks share batches, and do not cut them: which samples are in one batch does not depend on the number of ranks. A rank gets none
    if there are fewer batches than ranks.
    """

    config: DataConfig
    data: DataSet
    chosen: NDArray[np.int64]
    """The numbers of the samples, in storage order."""
    batch: int
    context: DistContext
    patience: Patience = NO_PATIENCE
    on_batch: Callable[[int], object] = lambda samples: None
    """It is called with the number of samples of each batch that this rank has done."""

    @property
    def count(self) -> int:
        return len(self.chosen)

    def __iter__(self) -> Iterator[Part]:
        starts = range(self.context.rank * self.batch, self.count, self.context.world_size * self.batch)
        places = [np.arange(start, min(start + self.batch, self.count)) for start in starts]
        if not places:
            return
        chosen = self.chosen[np.concatenate(places)]
        batches = evaluation_batches(self.config, self.data, batch=self.batch, rank=0, world_size=1, chosen=chosen, patience=self.patience)
        with closing(batches):
            for numbers_B, batch in zip(places, batches, strict=True):
                batch = batch.to(self.context.device)
                yield Part(batch.images_BCHW, batch.labels_B, numbers_B)
                self.on_batch(len(numbers_B))
