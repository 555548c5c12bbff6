"""Reads, transforms and stacks the samples of whole micro-batches. This is the work of a loader process."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import default_collate

from data_pipelines.errors import DataError, UserError
from data_pipelines.loading.batch import PADDING_LABEL, Batch
from data_pipelines.loading.dataset import DataSet
from data_pipelines.loading.normalisation import Normalisation
from data_pipelines.loading.rng import fork_rng, seed_rng
from data_pipelines.loading.sampler import PADDING
from data_pipelines.loading.transforms import Transform

MAX_CONSECUTIVE_BAD = 100
"""After so many unreadable samples in a row no further replacement is tried: the shard is damaged, not a single image."""


Request = Sequence[tuple[int, int]]
"""The (draw, sample) pairs of one micro-batch. A draw seeds the augmentation; it is the epoch, unless samples are repeated."""


@dataclass(frozen=True)
class Unread:
    """A micro-batch that could not be loaded, and the reason. The training process may ask for it again."""

    request: Request
    error: UserError


class MicroBatchDataset(torch.utils.data.Dataset):
    """A map-style data set whose items are whole micro-batches.

    The pixels of a sample depend on (seed, draw, sample) alone. An error is returned as a *value*: if a worker process raised it,
    the user would see the worker's traceback around it.

    replace_bad: True: a damaged sample is replaced by the next readable one in storage order. False: it is an error. A sample that
    cannot be read now is never replaced, so that what a run computes does not depend on its disk or its network.
    """

    def __init__(self, data: DataSet, transform: Transform, normalisation: Normalisation, seed: int, *, replace_bad: bool) -> None:
        self._data: DataSet | bytes = data
        self.transform, self.normalisation, self.seed = transform, normalisation, seed
        self.replace_bad = replace_bad

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the data set for later. It opens files, and an error at the start of a worker process would end it without a word."""
        return {**self.__dict__, "_data": pickle.dumps(self.data)}

    @property
    def data(self) -> DataSet:
        """The data set. A worker process opens it when it is first asked for a sample."""
        if not isinstance(self._data, DataSet):
            self._data = pickle.loads(self._data)
        assert isinstance(self._data, DataSet)
        return self._data

    def __len__(self) -> int:
        return len(self.data)

    def __getitems__(self, request: Request) -> Batch | Unread:
        try:
            return self.load(request)
        except UserError as error:
            return Unread(request, error)

    def load(self, request: Request) -> Batch:
        """Load a micro-batch. Raises DataError for a damaged sample, and UnavailableError for one that cannot be read now."""
        skipped: list[str] = []
        with fork_rng():
            read = [self._read(draw, max(sample, 0), skipped) for draw, sample in request]
        index = self.data.index
        samples = [None if asked == PADDING else sample for (_, asked), (sample, _) in zip(request, read, strict=True)]
        labels = [PADDING_LABEL if sample is None else index.label_of(sample) for sample in samples]
        keys = ["" if sample is None else index.key_of(sample) for sample in samples]
        return Batch(stack([image for _, image in read]), torch.tensor(labels), keys, self.normalisation, skipped)

    def _read(self, draw: int, asked: int, skipped: list[str]) -> tuple[int, torch.Tensor]:
        """Read the sample asked for, or its replacement. Returns its number and its image."""
        for sample in range(asked, asked + MAX_CONSECUTIVE_BAD):
            sample %= len(self.data)
            try:
                return sample, self._image(draw, asked, sample)
            except DataError as error:
                if not self.replace_bad:
                    raise
                skipped.append(str(error))
        raise DataError(f"{MAX_CONSECUTIVE_BAD} samples in a row cannot be read; the last: {skipped[-1]}")

    def _image(self, draw: int, asked: int, sample: int) -> torch.Tensor:
        pixels = self.data.read(sample)
        seed_rng(self.seed, draw, asked)
        try:
            return self.transform(pixels)
        except (ValueError, ArithmeticError) as error:  # for example, an image of one pixel has no crop
            raise DataError(f"{self.data.describe(sample)}: the image cannot be transformed ({error}); remove it.") from None


def stack(images: list[torch.Tensor]) -> torch.Tensor:
    """Stack images [H, W, 3] to [B, 3, H, W], or event frames [T, 2, H, W] to [T, B, 2, H, W].

    default_collate copies into memory that a loader process shares with the training process. Images are copied in their own memory
    layout, which is fastest: uint8 ones with channels last, normalised ones with channels first.
    """
    if images[0].dim() == 4:
        return default_collate(images).transpose(0, 1)
    if images[0].dtype == torch.uint8:
        return default_collate(images).permute(0, 3, 1, 2)
    return default_collate([image_HWC.permute(2, 0, 1) for image_HWC in images])
