"""Reads images that a text file lists, one `path class` per line."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.formats.images import EXTENSION_OF
from data_pipelines.formats.keys import key_of
from data_pipelines.formats.sample import RawSample
from data_pipelines.sources.base import LeftOut, Source
from data_pipelines.sources.known_classes import other_form
from data_pipelines.sources.list_file import ListEntry, read_list
from data_pipelines.storage.passing_trouble import is_passing, read_error, reading

MISSING = -1
"""Stands for the size of a listed file that is not there when the list is opened."""


class ListSource:
    """The samples of a text file. Each line is a path, a tab or spaces, and a class. Blank lines and lines with # are skipped.

    A line with tabs is cut at its last tab, any other line at its last space. Relative paths start at the list's folder.
    classes: for a validation set, the class names of the training set. Without them the classes of the list are taken, sorted by
        name, or by number if all are integers.
    Raises DataError, naming the line, for a malformed line, a path that leaves the folder by `..`, a file suffix of no image, an
    unknown class, and two lines with the same file or key. A file that was missing from the start is reported only when it is read; one
    that goes later raises UnavailableError.
    """

    ignored_files = 0
    left_out: Sequence[LeftOut] = ()

    def __init__(self, path: Path, classes: Sequence[str] | None = None) -> None:
        self._list = path
        entries = list(read_list(path))
        if not entries:
            raise DataError(f"{path} lists no image; expected lines of a path and a class.")
        self.classes = list(classes or _sorted_classes({entry.class_name for entry in entries}))
        label_of = {name: label for label, name in enumerate(self.classes)}
        _check_classes(entries, self.classes)
        _check_no_repetition(entries)
        self._files = [entry.file for entry in entries]
        self._line = np.array([entry.line for entry in entries], np.int64)
        self._label = np.array([label_of[entry.class_name] for entry in entries], np.int32)
        with reading(path, was_there=True):
            self._bytes = np.array([_size(self._path(index)) for index in range(len(entries))], np.int64)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> RawSample:
        path = self._path(index)
        try:
            if path.exists() and not path.is_file():
                raise OSError(errno.EINVAL, "it is no file")  # reading a pipe or a device might never end
            data = path.read_bytes()
        except OSError as error:
            damage = f"{self.origin(index)} cannot be read ({error.strerror}); mend it, or remove the line."
            raise read_error(self.origin(index), error, damage, was_there=bool(self._bytes[index] != MISSING)) from None
        return RawSample(key_of(self._files[index]), EXTENSION_OF[path.suffix.lower()], data, int(self._label[index]))

    def _path(self, index: int) -> Path:
        return self._list.parent / self._files[index]

    def origin(self, index: int) -> str:
        return f"{self._path(index)}, line {self._line[index]} of {self._list}"

    def fingerprint(self) -> str:
        """Hash classes, file names, labels and file sizes, as they were when the list was opened. Reading reports a missing file."""
        digest = hashlib.sha256(repr(self.classes).encode())
        for index, file in enumerate(self._files):
            size = self._bytes[index]
            digest.update(f"{file} {self._label[index]} {'missing' if size == MISSING else size}\n".encode())
        return digest.hexdigest()


def _size(path: Path) -> int:
    """Return the size of a listed file, or MISSING if there is none. Raises OSError for passing trouble."""
    try:
        return path.stat().st_size
    except OSError as error:
        if is_passing(error):
            raise
        return MISSING


def open_lists(source: Path) -> dict[str, Source]:
    """Open `train` and `val` in a folder with train.txt and val.txt; or one list file, whose split has the name of the file."""
    if not source.is_dir():
        return {source.stem: ListSource(source)}
    if missing := [name for name in ("train.txt", "val.txt") if not (source / name).is_file()]:
        raise DataError(f"{source} has no {missing[0]}; expected train.txt and val.txt with lines of a path and a class.")
    train = ListSource(source / "train.txt")
    return {"train": train, "val": ListSource(source / "val.txt", train.classes)}


def _check_classes(entries: list[ListEntry], classes: Sequence[str]) -> None:
    known = set(classes)
    if unknown := next((entry for entry in entries if entry.class_name not in known), None):
        if other := other_form(unknown.class_name, classes):
            raise DataError(
                f"{unknown.origin} has the class {unknown.class_name!a}, which the training set writes {other!a}: one name in two Unicode "
                "forms, as macOS writes names its own way; write both alike."
            )
        raise DataError(f"{unknown.origin} has the class {unknown.class_name}, which the training set lacks; remove or rename it.")


def _check_no_repetition(entries: list[ListEntry]) -> None:
    first_with: dict[str, ListEntry] = {}
    for entry in entries:
        other = first_with.setdefault(key_of(entry.file), entry)
        if other is entry:
            continue
        if other.file != entry.file:
            raise DataError(
                f"{other.file} and {entry.file} (lines {other.line} and {entry.line} of {entry.list}) would have the same "
                f"key {key_of(entry.file)}; rename or remove one of them."
            )
        raise DataError(
            f"{entry.list} lists {entry.file} twice, as {other.class_name} in line {other.line} and as "
            f"{entry.class_name} in line {entry.line}; remove one of them."
        )


def _sorted_classes(names: set[str]) -> list[str]:
    try:
        return sorted(names, key=lambda name: (int(name), name))
    except ValueError:
        return sorted(names)
