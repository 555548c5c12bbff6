"""WebDataset shards -> batches, with random access: any sample of any epoch, without reading those before it."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from data_pipelines.augment import Transform, seeded
from data_pipelines.batch import PADDING_LABEL, Batch
from data_pipelines.errors import DataError
from data_pipelines.images import decode
from data_pipelines.order import PADDING
from data_pipelines.shards import ShardSet


class WdsDataset(torch.utils.data.Dataset):
    """Map-style data set over a ShardSet. It is asked for whole micro-batches of (epoch, sample index) pairs.

    A sample's pixels depend on (seed, epoch, sample) alone. What cannot be read or decoded comes back as
    a DataError *value*: raised in a worker process it would reach the user wrapped in a worker's traceback.
    """

    def __init__(self, shards: ShardSet, transform: Transform, seed: int) -> None:
        self.shards, self.transform, self.seed = shards, transform, seed
        self._files: dict[int, int] = {}  # shard -> file descriptor, opened by each process for itself

    def __len__(self) -> int:
        return len(self.shards)

    def __getitems__(self, places: Sequence[tuple[int, int]]) -> Batch | DataError:
        try:
            images = [self._image(epoch, max(sample, 0)) for epoch, sample in places]
        except DataError as error:
            return error
        index = self.shards.index
        labels = [PADDING_LABEL if sample == PADDING else int(index.label[sample]) for _, sample in places]
        keys = ["" if sample == PADDING else str(index.key[sample]) for _, sample in places]
        return Batch(torch.stack(images), torch.tensor(labels), keys)

    def _image(self, epoch: int, sample: int) -> torch.Tensor:
        try:
            image = decode(self._read(sample))
        except DataError as error:
            raise DataError(f"{self.shards.describe(sample)}: {error}; remove or replace it and prepare the data set again.") from None
        with seeded(self.seed, epoch, sample):
            return self.transform(image)

    def _read(self, sample: int) -> bytes:
        index = self.shards.index
        shard, size = int(index.shard[sample]), int(index.size[sample])
        try:
            if shard not in self._files:
                self._files[shard] = os.open(self.shards.path_of(sample), os.O_RDONLY)
            data = os.pread(self._files[shard], size, int(index.offset[sample]))
        except OSError as error:
            raise DataError(f"the shard cannot be read ({error.strerror})") from None
        if len(data) != size:
            raise DataError(f"the shard ends after {len(data)} of the image's {size} bytes")
        return data

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_files": {}}  # descriptors are of this process
