"""Reads the corruption suite CIFAR-10-C: one source per corruption and severity.

The suite is published at https://github.com/hendrycks/robustness. It has one array per corruption, <corruption>.npy, with the test
set at severity 1, then at severity 2, and so on to 5. labels.npy holds the labels of all five.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.formats.images import encode_png
from data_pipelines.formats.sample import RawSample
from data_pipelines.sources.base import LeftOut, Source
from data_pipelines.storage.passing_trouble import read_error

SEVERITIES = range(1, 6)
"""The severities of both suites, CIFAR-10-C and ImageNet-C."""
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
"""The class names of CIFAR-10 in the order of its labels. The suite itself names no classes."""


class CorruptedArraySource:
    """The samples of one corruption at one severity: N consecutive images of an array. Each image becomes a PNG.

    labels: int64 [N]. Each process maps the array at its first read; it is not pickled.
    """

    def __init__(self, path: Path, severity: int, labels: np.ndarray) -> None:
        self.classes = list(CIFAR10_CLASSES)
        self.ignored_files = 0
        self.left_out: list[LeftOut] = []
        self._path = path
        self._name = f"{path.stem}-{severity}"
        self._first = (severity - 1) * len(labels)
        self._labels = labels
        self._mapped: np.ndarray | None = None

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_mapped": None}

    @property
    def _pixels(self) -> np.ndarray:
        if self._mapped is None:
            self._mapped = _open_array(self._path)
        return self._mapped[self._first : self._first + len(self)]

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> RawSample:
        key = f"{self._name}-{index:05d}".replace(".", "_")
        return RawSample(key, "png", encode_png(self._pixels[index]), int(self._labels[index]))

    def origin(self, index: int) -> str:
        return f"{self._path} row {self._first + index}"

    def fingerprint(self) -> str:
        """Hash name, pixels and labels. All such files have one size, so sizes would not do, and 30 MB are read quickly."""
        digest = hashlib.sha256(self._name.encode("utf-8", "surrogateescape"))
        digest.update(np.ascontiguousarray(self._pixels).data)
        digest.update(self._labels.data)
        return digest.hexdigest()


def open_cifar10_c(root: Path) -> dict[str, Source]:
    """Open all corruptions in a folder. The splits are named `gaussian_noise-1` and so on, by corruption and severity.

    Raises DataError, naming the file, for arrays that are not as published.
    """
    paths = [path for path in sorted(root.glob("*.npy")) if path.name != "labels.npy"]
    if not paths or not (root / "labels.npy").is_file():
        raise DataError(f"{root}: expected labels.npy and a <corruption>.npy per corruption, as the published CIFAR-10-C.tar unpacks.")
    labels = _cifar10_labels(root / "labels.npy")
    blocks = np.split(labels, len(SEVERITIES))
    for path in paths:
        if len(_open_array(path)) != len(labels):
            raise DataError(f"{path} holds {len(_open_array(path))} images, but labels.npy {len(labels)} labels; download the suite again.")
    return {
        f"{path.stem}-{severity}": CorruptedArraySource(path, severity, block)
        for path in paths
        for severity, block in zip(SEVERITIES, blocks, strict=True)
    }


def _cifar10_labels(path: Path) -> np.ndarray:
    """Read and check the labels of all severities, int64 [5 N]."""
    labels = _map(path)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{path} is {labels.dtype} {list(labels.shape)}; expected integers [N], so download the suite again.")
    if len(labels) == 0 or len(labels) % len(SEVERITIES):
        raise DataError(f"{path} holds {len(labels)} labels; expected a multiple of 5, one block of equal length per severity.")
    if wrong := sorted({int(label) for label in labels} - set(range(len(CIFAR10_CLASSES)))):
        raise DataError(f"{path}: label {wrong[0]} is not in 0 … {len(CIFAR10_CLASSES) - 1}; download the suite again.")
    return np.array(labels, np.int64)


def _open_array(path: Path) -> np.ndarray:
    """Map an array of images into memory: uint8 [N, 32, 32, 3]."""
    pixels = _map(path)
    if pixels.dtype != np.uint8 or pixels.shape[1:] != (32, 32, 3):
        raise DataError(f"{path} is {pixels.dtype} {list(pixels.shape)}; expected uint8 [N, 32, 32, 3], so download the suite again.")
    return pixels


def _map(path: Path) -> np.ndarray:
    """Map an .npy file into memory. Unlike np.load, open_memmap reads no other file type, and it never unpickles objects."""
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError) as error:
        damage = f"{path} cannot be read as an array of numbers ({error}); download the suite again."
        raise read_error(path, error, damage, was_there=True) from None
