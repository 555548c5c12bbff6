"""Finds the images that a user names: files, folders of them, patterns, standard input, and samples of a prepared data set."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from glob import glob
from pathlib import Path

from data_pipelines.errors import UserError
from data_pipelines.formats.images import EXTENSION_OF
from data_pipelines.formats.manifest import MANIFEST
from data_pipelines.loading.open_dataset import open_dataset
from data_pipelines.loading.sampler import at_equal_distances
from tdformer.inference.predictor import Readable

STDIN = "-"
SUFFIXES = frozenset({*EXTENSION_OF, ".npy"})


@dataclass(frozen=True)
class NamedImage:
    """An image that is to be answered. It is read when it is its turn."""

    name: str
    read: Callable[[], Readable]
    label: str | None = None
    """The name of its class, if that is known."""

    @property
    def stem(self) -> str:
        """The name without folders, for the file of a picture."""
        return "stdin" if self.name == STDIN else Path(self.name).stem


def named_images(names: Sequence[str], samples: int | None) -> Iterator[NamedImage]:
    """Yield the images in the order of their names. Raises UserError for what is not there.

    samples: so many of each prepared data set, at equal distances. None: all of them.
    """
    for name in names:
        path = Path(name)
        if name == STDIN:
            yield NamedImage(name, sys.stdin.buffer.read)
        elif path.is_file():
            yield _of_file(name)
        elif (path / MANIFEST).is_file():
            yield from _of_data_set(name, samples)
        elif path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
            if not found:
                raise UserError(f"{name} holds no image: no file ends in .jpg, .jpeg, .png or .npy; give another folder, or files.")
            yield from map(_of_file, map(str, found))
        elif matching := sorted(file for file in glob(name, recursive=True) if Path(file).is_file()):
            yield from map(_of_file, matching)
        else:
            raise UserError(
                f"there is no image {name}; give JPEG or PNG files, folders, patterns in quotes, a prepared data set, or - for stdin."
            )


def _of_file(name: str) -> NamedImage:
    return NamedImage(name, partial(Path, name))


def _of_data_set(location: str, samples: int | None) -> Iterator[NamedImage]:
    data = open_dataset(location)
    for sample in at_equal_distances(len(data), len(data) if samples is None else samples).tolist():
        name, label = data.index.key_of(sample), data.classes[data.index.label_of(sample)]
        yield NamedImage(f"{location}/{name}", partial(data.read, sample), label)
