"""Reads images and labels that are stored as arrays: images.npy and labels.npy in a folder, or one .npz file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap

from data_pipelines.errors import DataError, UserError
from data_pipelines.formats.images import encode_png
from data_pipelines.formats.sample import RawSample
from data_pipelines.sources.base import LeftOut, Source
from data_pipelines.storage.passing_trouble import read_error

MAX_CLASSES = 1_000_000
"""A larger label is no class. It is a marker, such as the largest integer for "unknown"."""


class ArraySource:
    """The samples of arrays: images uint8 [N, H, W] or [N, H, W, 3], and labels, integers [N]. Each image becomes a PNG.

    path: a folder with images.npy, labels.npy and optionally classes.txt (one name per line); or an .npz file with the arrays
        images, labels and optionally classes. An images.npy is mapped, so it may be larger than memory.
    classes: for a validation set, the class names of the training set. If nothing names them, classes are called 0, 1, …
    Raises DataError, naming the file, for other types and shapes, and for a label that is no class.
    """

    ignored_files = 0
    left_out: Sequence[LeftOut] = ()

    def __init__(self, path: Path, classes: Sequence[str] | None = None) -> None:
        self._path = path
        images, labels, named = _load(path)
        _check(path, images, labels, named or ())
        if classes and named is not None and list(classes) != named:
            raise DataError(f"{path} names other classes than the training set; remove them, or make them the same.")
        self.classes = list(classes or (_numbered_classes(path, int(labels.max())) if named is None else named))
        if (largest := int(labels.max())) >= len(self.classes):
            at = int(labels.argmax())
            raise DataError(
                f"{path}: label {largest} of image {at} is no class; expected less than {len(self.classes)}, the number of classes."
            )
        self._labels = labels.astype(np.int64)
        self._opened: np.ndarray | None = images

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the source without its images. Each process opens them again."""
        return {**self.__dict__, "_opened": None}

    @property
    def _images(self) -> np.ndarray:
        if self._opened is None:
            self._opened = _load(self._path, was_there=True)[0]
        return self._opened

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> RawSample:
        pixels = np.ascontiguousarray(self._images[index])
        return RawSample(f"image-{index:08d}", "png", encode_png(pixels), int(self._labels[index]))

    def origin(self, index: int) -> str:
        return f"{self._path}, image {index}"

    def fingerprint(self) -> str:
        """Hash classes, labels and all pixels. File sizes would not do, since arrays of one shape have one size."""
        digest = hashlib.sha256(repr((self.classes, self._images.shape)).encode() + self._labels.tobytes())
        for start in range(0, len(self), 1024):
            digest.update(self._images[start : start + 1024].tobytes())
        return digest.hexdigest()


def open_arrays(root: Path) -> dict[str, Source]:
    """Open `train` and `val` in a folder with train.npz and val.npz, or with folders of these names. Raises DataError if one lacks."""
    paths = {split: root / f"{split}.npz" if (root / f"{split}.npz").exists() else root / split for split in ("train", "val")}
    if missing := [path for path in paths.values() if not path.exists()]:
        raise DataError(
            f"{root} has neither {missing[0].name}.npz nor {missing[0].name}/; expected images and labels of both train and val."
        )
    train = ArraySource(paths["train"])
    return {"train": train, "val": ArraySource(paths["val"], train.classes)}


def _load(path: Path, *, was_there: bool = False) -> tuple[np.ndarray, np.ndarray, list[str] | None]:
    """Load images, labels and the class names, if there are any. Nothing is ever unpickled. was_there: they were loaded before."""
    return _load_folder(path, was_there) if path.is_dir() else _load_npz(path, was_there)


@contextmanager
def _reading(path: Path, was_there: bool) -> Iterator[None]:
    """Turn NumPy's errors for an unreadable file into a DataError or an UnavailableError with the file's name."""
    try:
        yield
    except OSError as error:
        damage = f"{path} cannot be read ({error.strerror or error}); mend it or copy it again."
        raise read_error(path, error, damage, was_there=was_there) from None
    except UserError:
        raise
    except Exception as error:  # a damaged file raises errors of NumPy, zipfile, zlib or tokenize
        damage = f"{path} holds no plain array ({error}); copy it again, or save it without Python objects."
        raise read_error(path, error, damage, was_there=was_there) from None


def _load_folder(folder: Path, was_there: bool) -> tuple[np.ndarray, np.ndarray, list[str] | None]:
    with _reading(folder / "images.npy", was_there):
        images = open_memmap(folder / "images.npy", mode="r")
    with _reading(folder / "labels.npy", was_there):
        labels = np.array(open_memmap(folder / "labels.npy", mode="r"))
    names = folder / "classes.txt"
    with _reading(names, was_there):
        return images, labels, names.read_text(encoding="utf-8").splitlines() if names.exists() else None


def _load_npz(path: Path, was_there: bool) -> tuple[np.ndarray, np.ndarray, list[str] | None]:
    with _reading(path, was_there):
        arrays = np.load(path, allow_pickle=False)
        if not isinstance(arrays, np.lib.npyio.NpzFile):
            raise ValueError("it is no .npz file")
        with arrays:
            if missing := [name for name in ("images", "labels") if name not in arrays]:
                raise ValueError(f"it lacks {missing[0]}")
            names = np.atleast_1d(arrays["classes"]).astype(str).tolist() if "classes" in arrays else None
            # NumPy returns bytes for a member that does not start with the .npy magic; asarray gives the checks an array.
            return np.asarray(arrays["images"]), np.asarray(arrays["labels"]), names


def _check(path: Path, images: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> None:
    if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)) or 0 in images.shape:
        raise DataError(f"{path}: images are {images.dtype} {list(images.shape)}, expected uint8 [N, H, W] or [N, H, W, 3].")
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise DataError(f"{path}: labels are {labels.dtype} {list(labels.shape)}, expected integers [N].")
    if len(labels) != len(images):
        raise DataError(f"{path} holds {len(images)} images but {len(labels)} labels; expected equally many.")
    if labels.min() < 0:
        raise DataError(f"{path}: label {labels.min()} of image {labels.argmin()} is negative; expected a class index.")
    if len(set(names)) != len(names) or "" in names:
        raise DataError(f"{path}: a class has no name, or two have the same; expected a different name for each.")


def _numbered_classes(path: Path, largest: int) -> list[str]:
    if largest >= MAX_CLASSES:
        raise DataError(f"{path}: label {largest} is too large for a class; expected 0 to the number of classes less one.")
    return [str(label) for label in range(largest + 1)]
