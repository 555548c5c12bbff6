"""A text file that names images and their classes, one `path class` per line."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.formats.images import EXTENSION_OF
from data_pipelines.formats.keys import key_of
from data_pipelines.formats.sample import RawSample
from data_pipelines.sources.base import Source


class ListSource:
    """The images that a text file lists: a path, then a tab or spaces, then the class. Blank lines and lines with # are skipped.

    A line with a tab is cut at its last tab, another at its last space. Relative paths start at the list's folder.
    classes: the training set's, for a validation set. Without it they are the classes of the list, sorted by name, or by
    number if all are integers. Raises DataError, naming the line, for a malformed one, a path that leaves the folder by
    `..`, a suffix that is no image's, an unknown class, and two lines with the same file or key. Files are not looked for.
    """

    left_out = 0

    def __init__(self, path: Path, classes: Sequence[str] | None = None) -> None:
        self._list = path
        entries = list(_read(path))
        if not entries:
            raise DataError(f"{path} lists no image; expected lines of a path and a class.")
        self.classes = list(classes or _in_order({entry.class_name for entry in entries}))
        label_of = {name: label for label, name in enumerate(self.classes)}
        if unknown := [entry for entry in entries if entry.class_name not in label_of]:
            raise DataError(f"{unknown[0].place} has the class {unknown[0].class_name}, which the training set lacks; remove or rename it.")
        _refuse_repetition(entries)
        self._files = [entry.file for entry in entries]
        self._line = np.array([entry.line for entry in entries], np.int64)
        self._label = np.array([label_of[entry.class_name] for entry in entries], np.int32)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> RawSample:
        path = self._path(index)
        try:
            if path.exists() and not path.is_file():
                raise OSError(errno.EINVAL, "it is no file")  # a pipe would be waited for, a device read for ever
            data = path.read_bytes()
        except OSError as error:
            raise DataError(f"{self.place(index)} cannot be read ({error.strerror}); mend it, or remove the line.") from None
        return RawSample(key_of(self._files[index]), EXTENSION_OF[path.suffix.lower()], data, int(self._label[index]))

    def _path(self, index: int) -> Path:
        return self._list.parent / self._files[index]

    def place(self, index: int) -> str:
        return f"{self._path(index)}, line {self._line[index]} of {self._list}"

    def fingerprint(self) -> str:
        """Of classes, names, labels and sizes. A file that is missing counts as such: reading it is what reports it."""
        digest = hashlib.sha256(repr(self.classes).encode())
        for index, file in enumerate(self._files):
            path = self._path(index)
            digest.update(f"{file} {self._label[index]} {_size(path)}\n".encode())
        return digest.hexdigest()


def _size(path: Path) -> int | str:
    try:
        return path.stat().st_size
    except OSError:
        return "missing"


def open_lists(source: Path) -> dict[str, Source]:
    """`train` and `val` of a folder that holds train.txt and val.txt. A file that is no folder is one set, called by its name."""
    if not source.is_dir():
        return {source.stem: ListSource(source)}
    if missing := [name for name in ("train.txt", "val.txt") if not (source / name).is_file()]:
        raise DataError(f"{source} has no {missing[0]}; expected train.txt and val.txt with lines of a path and a class.")
    train = ListSource(source / "train.txt")
    return {"train": train, "val": ListSource(source / "val.txt", train.classes)}


@dataclass(frozen=True, slots=True)
class _Entry:
    list: Path
    line: int
    file: str  # without `.` and `..`; relative to the list's folder if it lies below it
    class_name: str

    @property
    def place(self) -> str:
        return f"{self.list}, line {self.line},"


def _read(path: Path) -> Iterator[_Entry]:
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); expected a text file with lines of a path and a class.") from None
    folder = os.path.abspath(path.parent)
    for number, line in enumerate(lines, 1):
        place = f"{path}, line {number},"
        try:
            text = line.decode("utf-8-sig").strip()  # Windows editors mark UTF-8 by three bytes at the start
        except UnicodeDecodeError:
            raise DataError(f"{place} is not UTF-8; expected a path and a class.") from None
        if text and not text.startswith("#"):
            name, class_name = _fields(text, place)
            yield _Entry(path, number, _file(name, folder, place), class_name)


def _fields(text: str, place: str) -> tuple[str, str]:
    name, separator, class_name = text.rpartition("\t") if "\t" in text else text.rpartition(" ")
    if not separator or not name.strip() or "\0" in text:
        raise DataError(f"{place} is {text[:80]!r}; expected a path and a class, with a tab or a space between them.")
    return name.strip(), class_name.strip()


def _file(name: str, folder: str, place: str) -> str:
    if not os.path.isabs(name) and ".." in name.split("/"):
        raise DataError(f"{place} names {name}, which leads out of the list's folder; remove the line or give an absolute path.")
    if os.path.splitext(name)[1].lower() not in EXTENSION_OF:
        raise DataError(f"{place} names {name}, expected a .jpg, .jpeg or .png file; convert it or remove the line.")
    full = os.path.normpath(os.path.join(folder, name))
    return full.removeprefix(os.path.join(folder, ""))


def _refuse_repetition(entries: list[_Entry]) -> None:
    first_with: dict[str, _Entry] = {}
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


def _in_order(names: set[str]) -> list[str]:
    try:
        return sorted(names, key=lambda name: (int(name), name))
    except ValueError:
        return sorted(names)
