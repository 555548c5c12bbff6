"""CIFAR-10 and CIFAR-100 from their published archives: cifar-10-python.tar.gz and cifar-100-python.tar.gz.

The format is described at https://www.cs.toronto.edu/~kriz/cifar.html: each batch is a pickle, written by Python 2, of a
dictionary with `data` (uint8 [N, 3072]: all red values of an image, then green, then blue) and a list of labels.
A pickle is a program. Here one can name nothing but the three parts of a numpy array, and gets harmless stand-ins for them.
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
from data_pipelines.sources.cifar_pickle import _Array, _unpickle


@dataclass(frozen=True)
class Published:
    """How one of the two sets names its archive, the folder and the members in it, and the entries of their dictionaries."""

    archive: str
    folder: str
    train: tuple[str, ...]
    val: tuple[str, ...]
    meta: str
    labels: bytes
    class_names: bytes


CIFAR10 = Published(
    archive="cifar-10-python.tar.gz",
    folder="cifar-10-batches-py",
    train=tuple(f"data_batch_{number}" for number in range(1, 6)),
    val=("test_batch",),
    meta="batches.meta",
    labels=b"labels",
    class_names=b"label_names",
)
CIFAR100 = Published(
    archive="cifar-100-python.tar.gz",
    folder="cifar-100-python",
    train=("train",),
    val=("test",),
    meta="meta",
    labels=b"fine_labels",
    class_names=b"fine_label_names",
)
PUBLISHED = {10: CIFAR10, 100: CIFAR100}


@dataclass(frozen=True)
class Batch:
    """What one member holds: uint8 pixels [N, 32, 32, 3] and int64 labels [N], and where it lies, for messages."""

    place: str
    pixels: np.ndarray
    labels: np.ndarray


class CifarSource:
    """The images of some batches, one after the other, as PNGs."""

    def __init__(self, split: str, batches: Sequence[Batch], classes: Sequence[str]) -> None:
        self.classes = list(classes)
        self.left_out = 0
        self._split = split
        self._places = [batch.place for batch in batches]
        self._ends = list(accumulate(len(batch.labels) for batch in batches))
        self._pixels = np.concatenate([batch.pixels for batch in batches])
        self._labels = np.concatenate([batch.labels for batch in batches])

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> RawSample:
        return RawSample(f"{self._split}-{index:05d}", "png", encode_png(self._pixels[index]), int(self._labels[index]))

    def place(self, index: int) -> str:
        batch = bisect_right(self._ends, index)
        return f"{self._places[batch]} image {index - (self._ends[batch - 1] if batch else 0)}"

    def fingerprint(self) -> str:
        """Of pixels and labels."""
        digest = hashlib.sha256(self._pixels.data)
        digest.update(self._labels.data)
        return digest.hexdigest()


def open_cifar(path: Path, classes: int) -> dict[str, Source]:
    """`train` and `val` (the published test set) of CIFAR-10 or CIFAR-100, from the archive or its unpacked folder.

    classes: 10 or 100; of CIFAR-100, the fine ones. Raises DataError, naming archive and member, for whatever is not as published.
    """
    published = PUBLISHED[classes]
    members = _members(path, published)
    names = _class_names(*members[published.meta], published, classes)

    def source(split: str, batches: Sequence[str]) -> CifarSource:
        return CifarSource(split, [_batch(*members[name], published.labels, classes) for name in batches], names)

    return {"train": source("train", published.train), "val": source("val", published.val)}


Member = tuple[str, bytes]
"""Where it lies, for messages, and its content."""


def _members(path: Path, published: Published) -> dict[str, Member]:
    """What open_cifar needs of an archive or a folder, by name."""
    wanted = (*published.train, *published.val, published.meta)
    try:
        members = _from_folder(path, wanted) if path.is_dir() else _from_archive(path, published.folder, wanted)
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        reason = " ".join(str(error).split())  # tarfile lists in lines what it tried
        raise DataError(f"{path} cannot be read ({reason}); download {published.archive} again.") from None
    if missing := [name for name in wanted if name not in members]:
        raise DataError(f"{path} has no {missing[0]}; expected the published {published.archive} or its folder {published.folder}.")
    return members


def _from_folder(folder: Path, wanted: Sequence[str]) -> dict[str, Member]:
    paths = [folder / name for name in wanted]
    return {path.name: (str(path), path.read_bytes()) for path in paths if path.is_file()}


def _from_archive(path: Path, folder: str, wanted: Sequence[str]) -> dict[str, Member]:
    """In one pass, since going back in a compressed archive means to start again."""
    members: dict[str, Member] = {}
    with tarfile.open(path) as tar:
        for info in tar:
            parent, _, name = info.name.rpartition("/")
            content = tar.extractfile(info) if parent == folder and name in wanted and info.isfile() else None
            if content is not None:
                members[name] = (f"{path} {info.name}", content.read())
    return members


def _class_names(place: str, data: bytes, published: Published, classes: int) -> list[str]:
    names = _unpickle(place, data).get(published.class_names)
    if not isinstance(names, list) or len(names) != classes or not all(isinstance(name, bytes) for name in names):
        raise DataError(f"{place} names no {classes} classes; expected the one of the published {published.archive}.")
    return [name.decode("ascii", "backslashreplace") for name in names]


def _batch(place: str, data: bytes, labels_name: bytes, classes: int) -> Batch:
    content = _unpickle(place, data)
    array, labels = content.get(b"data"), content.get(labels_name)
    pixels = array.value if isinstance(array, _Array) else None
    if pixels is None or pixels.ndim != 2 or pixels.shape[1] != 3 * 32 * 32:
        raise DataError(f"{place}: `data` is {_shape(pixels)}; expected uint8 [N, 3072], so download the archive again.")
    if not isinstance(labels, list) or len(labels) != len(pixels) or not all(type(label) is int for label in labels):
        raise DataError(
            f"{place}: `{labels_name.decode()}` is no list of {len(pixels)} integers, one per image; download the archive again."
        )
    if wrong := [label for label in labels if not 0 <= label < classes]:
        raise DataError(f"{place}: label {wrong[0]} is not in 0 … {classes - 1}; download the archive again.")
    images_NHWC = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return Batch(place, np.ascontiguousarray(images_NHWC), np.array(labels, np.int64))


def _shape(pixels: np.ndarray | None) -> str:
    return "no array" if pixels is None else f"uint8 {list(pixels.shape)}"
