"""The samples on which networks are analysed: the same ones for every network, each once over all ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from data_pipelines.config import DataConfig
from data_pipelines.loading.batch import PADDING_LABEL
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
    """Some samples of a data set. Iterating gives this rank's, batch by batch."""

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
        rank, world_size = self.context.rank, self.context.world_size
        share = evaluation_batches(
            self.config, self.data, batch=self.batch, rank=rank, world_size=world_size, chosen=self.chosen, patience=self.patience
        )
        with closing(share) as batches:
            for index, batch in enumerate(batches):
                batch = batch.to(self.context.device)
                real = batch.labels_B != PADDING_LABEL
                numbers = rank + world_size * (index * self.batch + np.arange(len(batch.labels_B)))
                images = batch.images_BCHW[:, real] if batch.images_BCHW.dim() == 5 else batch.images_BCHW[real]
                if len(images):
                    yield Part(images, batch.labels_B[real], numbers[real.cpu().numpy()])
                self.on_batch(int(real.sum()))
