"""WebDataset shards -> batches, with random access: any sample of any epoch, without reading those before it."""

from __future__ import annotations

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

    def __len__(self) -> int:
        return len(self.shards)

    def __getitems__(self, places: Sequence[tuple[int, int]]) -> Batch | DataError:
        try:
            images = [self._image(epoch, max(sample, 0)) for epoch, sample in places]
        except DataError as error:
            return error
        index = self.shards.index
        labels = [PADDING_LABEL if sample == PADDING else int(index.label[sample]) for _, sample in places]
        keys = ["" if sample == PADDING else index.key_of(sample) for _, sample in places]
        return Batch(torch.stack(images), torch.tensor(labels), keys)

    def _image(self, epoch: int, sample: int) -> torch.Tensor:
        try:
            image = decode(self._read(sample))
        except DataError as error:
            remedy = f"mend or remove it in the source, remove {self.shards.folder} and prepare it again"
            raise DataError(f"{self.shards.describe(sample)}: {error}; {remedy}.") from None
        with seeded(self.seed, epoch, sample):
            return self.transform(image)

    def _read(self, sample: int) -> bytes:
        offset, size = int(self.shards.index.offset[sample]), int(self.shards.index.size[sample])
        try:
            # Opened for each read: a descriptor kept per shard would pass the usual limit of 1,024 on ImageNet.
            with self.shards.path_of(sample).open("rb", buffering=0) as shard:
                shard.seek(offset)
                data = shard.read(size)
        except OSError as error:
            raise DataError(f"the shard cannot be read ({error.strerror})") from None
        if len(data) != size:
            raise DataError(f"the shard ends after {len(data)} of the image's {size} bytes")
        return data
