"""Reads MNIST, and sets that are published in its format: Fashion-MNIST, KMNIST and others. Grey images in IDX files, gzipped or not.

An IDX file has a magic number, the sizes of its axes, and then the values, all big-endian [http://yann.lecun.com/exdb/mnist].
"""

from __future__ import annotations

import gzip
import hashlib
import struct
import zlib
from pathlib import Path

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.formats.images import encode_png
from data_pipelines.formats.sample import RawSample
from data_pipelines.sources.base import LeftOut, Source
from data_pipelines.storage.passing_trouble import read_error

PREFIXES = {"train": "train", "val": "t10k"}
"""How the files of each split begin, as published."""
IMAGES, LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"
BYTES = 0x08
"""The type of the values: unsigned bytes."""
MAX_CLASSES = 256


class IdxSource:
    """The images of one split, uint8 [N, H, W], in the order of the file. Classes are called by their numbers."""

    def __init__(self, root: Path, split: str, classes: int | None = None) -> None:
        """classes: for a validation set, the number of classes of the training set. Raises DataError, naming the file."""
        images, labels = (_find(root, f"{PREFIXES[split]}-{kind}") for kind in (IMAGES, LABELS))
        self._path, self._pixels, self._labels = images, read_idx(images, 3), read_idx(labels, 1)
        if len(self._pixels) != len(self._labels):
            raise DataError(f"{images} holds {len(self._pixels)} images, and {labels.name} {len(self._labels)} labels; copy both again.")
        if not len(self._labels):
            raise DataError(f"{images} holds no image; copy it again.")
        count = int(self._labels.max()) + 1
        if classes is not None and count > classes:
            raise DataError(f"{labels} has the label {count - 1}, and the training set has {classes} classes; copy both again.")
        self.classes = [str(number) for number in range(classes or count)]
        self.ignored_files = 0
        self.left_out: list[LeftOut] = []
        self._split = split

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> RawSample:
        return RawSample(f"{self._split}-{index:06d}", "png", encode_png(self._pixels[index]), int(self._labels[index]))

    def origin(self, index: int) -> str:
        return f"{self._path}, image {index}"

    def fingerprint(self) -> str:
        return hashlib.sha256(self._pixels.tobytes() + self._labels.tobytes()).hexdigest()


def open_idx(root: Path) -> dict[str, Source]:
    """Open `train` and `val`, which is published as t10k. Raises DataError if one of the four files is missing or damaged."""
    train = IdxSource(root, "train")
    return {"train": train, "val": IdxSource(root, "val", len(train.classes))}


def is_idx(root: Path) -> bool:
    """Tell whether a folder holds the images of a training set in this format."""
    return any((root / f"{PREFIXES['train']}-{IMAGES}{end}").exists() for end in ("", ".gz"))


def read_idx(path: Path, axes: int) -> np.ndarray:
    """Return the values of a file, uint8 with this number of axes. Raises DataError if they are others, or not all there."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise read_error(path, error, f"{path} is damaged ({error}); copy it again.", was_there=True) from None
    header = 4 * (1 + axes)
    if len(content) < header or content[:4] != bytes((0, 0, BYTES, axes)):
        raise DataError(f"{path} is no IDX file of bytes with {axes} axes; give the published files.")
    shape = struct.unpack(f">{axes}I", content[4:header])
    if len(content) - header != int(np.prod(shape, dtype=np.int64)):
        raise DataError(f"{path} says that it holds {' x '.join(map(str, shape))} bytes, and holds {len(content) - header}; copy it again.")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _find(root: Path, name: str) -> Path:
    for path in (root / name, root / f"{name}.gz"):
        if path.exists():
            return path
    raise DataError(f"{root} lacks {name} (or {name}.gz); expected are images and labels of train and t10k, as they are published.")
