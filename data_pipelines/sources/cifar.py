"""Reads CIFAR-10 and CIFAR-100 from their published archives, cifar-10-python.tar.gz and cifar-100-python.tar.gz.

The format is described at https://www.cs.toronto.edu/~kriz/cifar.html: each batch is a pickle, written by Python 2, of a
dictionary with `data` (uint8 [N, 3072]: all red values of an image, then green, then blue) and a list of labels.
"""

from __future__ import annotations

import hashlib
import tarfile
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.formats.images import encode_png
from data_pipelines.formats.sample import RawSample
from data_pipelines.sources.base import Source
from data_pipelines.sources.cifar_pickle import PixelArray, unpickle_batch


@dataclass(frozen=True)
class CifarArchive:
    """The published names of one data set: its archive, the folder and members in it, and the entries of their dictionaries."""

    archive: str
    folder: str
    train: tuple[str, ...]
    val: tuple[str, ...]
    meta: str
    labels: bytes
    class_names: bytes


CIFAR10 = CifarArchive(
    archive="cifar-10-python.tar.gz",
    folder="cifar-10-batches-py",
    train=tuple(f"data_batch_{number}" for number in range(1, 6)),
    val=("test_batch",),
    meta="batches.meta",
    labels=b"labels",
    class_names=b"label_names",
)
CIFAR100 = CifarArchive(
    archive="cifar-100-python.tar.gz",
    folder="cifar-100-python",
    train=("train",),
    val=("test",),
    meta="meta",
    labels=b"fine_labels",
    class_names=b"fine_label_names",
)
CIFAR_ARCHIVES = {10: CIFAR10, 100: CIFAR100}


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
    members = _members(path, published)
    names = _class_names(*members[published.meta], published, classes)

    def source(split: str, batches: Sequence[str]) -> CifarSource:
        return CifarSource(split, [_batch(*members[name], published.labels, classes) for name in batches], names)

    return {"train": source("train", published.train), "val": source("val", published.val)}


Member = tuple[str, bytes]
"""The name of a member for messages, and its content."""


def _members(path: Path, published: CifarArchive) -> dict[str, Member]:
    """Read the members that open_cifar needs, by name, from an archive or a folder."""
    wanted = (*published.train, *published.val, published.meta)
    try:
        members = _from_folder(path, wanted) if path.is_dir() else _from_archive(path, published.folder, wanted)
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        reason = " ".join(str(error).split())  # tarfile's message has several lines
        raise DataError(f"{path} cannot be read ({reason}); download {published.archive} again.") from None
    if missing := [name for name in wanted if name not in members]:
        raise DataError(f"{path} has no {missing[0]}; expected the published {published.archive} or its folder {published.folder}.")
    return members


def _from_folder(folder: Path, wanted: Sequence[str]) -> dict[str, Member]:
    paths = [folder / name for name in wanted]
    return {path.name: (str(path), path.read_bytes()) for path in paths if path.is_file()}


def _from_archive(path: Path, folder: str, wanted: Sequence[str]) -> dict[str, Member]:
    """Read the members in one pass, since seeking back in a compressed archive means to start again."""
    members: dict[str, Member] = {}
    with tarfile.open(path) as tar:
        for info in tar:
            parent, _, name = info.name.rpartition("/")
            content = tar.extractfile(info) if parent == folder and name in wanted and info.isfile() else None
            if content is not None:
                members[name] = (f"{path} {info.name}", content.read())
    return members


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
