"""Samples of a data set -> whole micro-batches: what a loader process does."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.utils.data import default_collate

from data_pipelines.errors import DataError
from data_pipelines.loading.batch import PADDING_LABEL, Batch
from data_pipelines.loading.dataset import DataSet
from data_pipelines.loading.normalisation import Normalisation
from data_pipelines.loading.rng import fork_rng, seed_rng
from data_pipelines.loading.sampler import PADDING
from data_pipelines.loading.transforms import Transform

MOST_IN_A_ROW = 100
"""Bad samples side by side after which no further replacement is looked for: that is a damaged shard, not a stray image."""


class MicroBatches(torch.utils.data.Dataset):
    """Map-style data set that is asked for whole micro-batches of (epoch, sample) pairs.

    A sample's pixels depend on (seed, epoch, sample) alone. What cannot be read comes back as a DataError *value*: raised in a
    worker process it would reach the user wrapped in a worker's traceback.

    replace_bad: a sample that cannot be read gives its place to the nearest one after it, in the order of storage, that can.
    """

    def __init__(self, data: DataSet, transform: Transform, normalisation: Normalisation, seed: int, *, replace_bad: bool) -> None:
        self.data, self.transform, self.normalisation, self.seed = data, transform, normalisation, seed
        self.replace_bad = replace_bad

    def __len__(self) -> int:
        return len(self.data)

    def __getitems__(self, places: Sequence[tuple[int, int]]) -> Batch | DataError:
        skipped: list[str] = []
        try:
            with fork_rng():
                read = [self._readable(epoch, max(sample, 0), skipped) for epoch, sample in places]
        except DataError as error:
            return error
        index = self.data.index
        real = [None if asked == PADDING else sample for (_, asked), (sample, _) in zip(places, read, strict=True)]
        labels = [PADDING_LABEL if sample is None else index.label_of(sample) for sample in real]
        keys = ["" if sample is None else index.key_of(sample) for sample in real]
        return Batch(_stacked([image for _, image in read]), torch.tensor(labels), keys, self.normalisation, skipped)

    def _readable(self, epoch: int, asked: int, skipped: list[str]) -> tuple[int, torch.Tensor]:
        """The sample asked for, or its replacement, and its image."""
        for sample in range(asked, asked + MOST_IN_A_ROW):
            sample %= len(self.data)
            try:
                return sample, self._image(epoch, asked, sample)
            except DataError as error:
                if not self.replace_bad:
                    raise
                skipped.append(str(error))
        raise DataError(f"{MOST_IN_A_ROW} samples in a row cannot be read; the last: {skipped[-1]}")

    def _image(self, epoch: int, asked: int, sample: int) -> torch.Tensor:
        pixels = self.data.read(sample)
        seed_rng(self.seed, epoch, asked)
        try:
            return self.transform(pixels)
        except (ValueError, ArithmeticError) as error:  # an image of one pixel has no crop
            raise DataError(f"{self.data.describe(sample)}: the image cannot be transformed ({error}); remove it.") from None


def _stacked(images: list[torch.Tensor]) -> torch.Tensor:
    """[H, W, 3] each -> [B, 3, H, W]; event frames [T, 2, H, W] -> [T, B, 2, H, W].

    Each is copied as it lies in memory: uint8 images by pixel, normalised ones by channel. default_collate copies into memory that
    a loader process shares with the training process.
    """
    if images[0].dim() == 4:
        return default_collate(images).transpose(0, 1)
    if images[0].dtype == torch.uint8:
        return default_collate(images).permute(0, 3, 1, 2)
    return default_collate([image_HWC.permute(2, 0, 1) for image_HWC in images])
