"""Reads CIFAR-10 and CIFAR-100 from their published archives, cifar-10-python.tar.gz and cifar-100-python.tar.gz.

The format is described at https://www.cs.toronto.edu/~kriz/cifar.html: each batch is a pickle, written by Python 2, of a
dictionary with `data` (uint8 [N, 3072]: all red values of an image, then green, then blue) and a list of labels.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.formats.images import encode_png
from data_pipelines.formats.sample import RawSample
from data_pipelines.sources.base import LeftOut, Source
from data_pipelines.sources.cifar_archive import CIFAR_ARCHIVES, CifarArchive, read_members
from data_pipelines.sources.cifar_pickle import PixelArray, unpickle_batch


@dataclass(frozen=True)
class CifarBatch:
    """The content of one member: pixels uint8 [N, 32, 32, 3] and labels int64 [N]. origin: the member's name for messages."""

    origin: str
    pixels: np.ndarray
    labels: np.ndarray


class CifarSource:
    """The samples of several batches, one batch after the other. Each image becomes a PNG."""

    def __init__(self, split: str, batches: Sequence[CifarBatch], classes: Sequence[str]) -> None:
        self.classes = list(classes)
        self.ignored_files = 0
        self.left_out: list[LeftOut] = []
        self._split = split
        self._origins = [batch.origin for batch in batches]
        self._ends = list(accumulate(len(batch.labels) for batch in batches))
        self._pixels = np.concatenate([batch.pixels for batch in batches])
        self._labels = np.concatenate([batch.labels for batch in batches])

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> RawSample:
        return RawSample(f"{self._split}-{index:05d}", "png", encode_png(self._pixels[index]), int(self._labels[index]))

    def origin(self, index: int) -> str:
        batch = bisect_right(self._ends, index)
        return f"{self._origins[batch]} image {index - (self._ends[batch - 1] if batch else 0)}"

    def fingerprint(self) -> str:
        """Hash pixels and labels."""
        digest = hashlib.sha256(self._pixels.data)
        digest.update(self._labels.data)
        return digest.hexdigest()


def open_cifar(path: Path, classes: int) -> dict[str, Source]:
    """Open `train` and `val` (the published test set) of CIFAR-10 or CIFAR-100, from the archive or its unpacked folder.

    classes: 10 or 100. For CIFAR-100 these are the fine classes.
    Raises DataError, naming archive and member, for content that is not as published.
    """
    published = CIFAR_ARCHIVES[classes]
    members = read_members(path, published)
    names = _class_names(*members[published.meta], published, classes)

    def source(split: str, batches: Sequence[str]) -> CifarSource:
        return CifarSource(split, [_batch(*members[name], published.labels, classes) for name in batches], names)

    return {"train": source("train", published.train), "val": source("val", published.val)}


def _class_names(origin: str, data: bytes, published: CifarArchive, classes: int) -> list[str]:
    names = unpickle_batch(origin, data).get(published.class_names)
    if not isinstance(names, list) or len(names) != classes or not all(isinstance(name, bytes) for name in names):
        raise DataError(f"{origin} names no {classes} classes; expected the one of the published {published.archive}.")
    return [name.decode("ascii", "backslashreplace") for name in names]


def _batch(origin: str, data: bytes, labels_name: bytes, classes: int) -> CifarBatch:
    content = unpickle_batch(origin, data)
    array, labels = content.get(b"data"), content.get(labels_name)
    pixels = array.value if isinstance(array, PixelArray) else None
    if pixels is None or pixels.ndim != 2 or pixels.shape[1] != 3 * 32 * 32:
        raise DataError(f"{origin}: `data` is {_shape(pixels)}; expected uint8 [N, 3072], so download the archive again.")
    if not isinstance(labels, list) or len(labels) != len(pixels) or not all(type(label) is int for label in labels):
        raise DataError(
            f"{origin}: `{labels_name.decode()}` is no list of {len(pixels)} integers, one per image; download the archive again."
        )
    if wrong := [label for label in labels if not 0 <= label < classes]:
        raise DataError(f"{origin}: label {wrong[0]} is not in 0 … {classes - 1}; download the archive again.")
    images_NHWC = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return CifarBatch(origin, np.ascontiguousarray(images_NHWC), np.array(labels, np.int64))


def _shape(pixels: np.ndarray | None) -> str:
    return "no array" if pixels is None else f"uint8 {list(pixels.shape)}"
