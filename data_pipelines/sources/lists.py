"""Reads images that a text file lists, one `path class` per line."""

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
    """The samples of a text file. Each line is a path, a tab or spaces, and a class. Blank lines and lines with # are skipped.

    A line with tabs is cut at its last tab, any other line at its last space. Relative paths start at the list's folder.
    classes: for a validation set, the class names of the training set. Without them the classes of the list are taken, sorted by
        name, or by number if all are integers.
    Raises DataError, naming the line, for a malformed line, a path that leaves the folder by `..`, a file suffix of no image, an
    unknown class, and two lines with the same file or key. A missing file is reported only when it is read.
    """

    ignored_files = 0

    def __init__(self, path: Path, classes: Sequence[str] | None = None) -> None:
        self._list = path
        entries = list(_read(path))
        if not entries:
            raise DataError(f"{path} lists no image; expected lines of a path and a class.")
        self.classes = list(classes or _sorted_classes({entry.class_name for entry in entries}))
        label_of = {name: label for label, name in enumerate(self.classes)}
        if unknown := [entry for entry in entries if entry.class_name not in label_of]:
            raise DataError(
                f"{unknown[0].origin} has the class {unknown[0].class_name}, which the training set lacks; remove or rename it."
            )
        _check_no_repetition(entries)
        self._files = [entry.file for entry in entries]
        self._line = np.array([entry.line for entry in entries], np.int64)
        self._label = np.array([label_of[entry.class_name] for entry in entries], np.int32)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> RawSample:
        path = self._path(index)
        try:
            if path.exists() and not path.is_file():
                raise OSError(errno.EINVAL, "it is no file")  # reading a pipe or a device might never end
            data = path.read_bytes()
        except OSError as error:
            raise DataError(f"{self.origin(index)} cannot be read ({error.strerror}); mend it, or remove the line.") from None
        return RawSample(key_of(self._files[index]), EXTENSION_OF[path.suffix.lower()], data, int(self._label[index]))

    def _path(self, index: int) -> Path:
        return self._list.parent / self._files[index]

    def origin(self, index: int) -> str:
        return f"{self._path(index)}, line {self._line[index]} of {self._list}"

    def fingerprint(self) -> str:
        """Hash classes, file names, labels and file sizes. A missing file is no error here, since reading it reports it."""
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
    """Open `train` and `val` in a folder with train.txt and val.txt; or one list file, whose split has the name of the file."""
    if not source.is_dir():
        return {source.stem: ListSource(source)}
    if missing := [name for name in ("train.txt", "val.txt") if not (source / name).is_file()]:
        raise DataError(f"{source} has no {missing[0]}; expected train.txt and val.txt with lines of a path and a class.")
    train = ListSource(source / "train.txt")
    return {"train": train, "val": ListSource(source / "val.txt", train.classes)}


@dataclass(frozen=True, slots=True)
class _Entry:
    """One line of a list. file: without `.` and `..`, and relative to the list's folder if it is below it."""

    list: Path
    line: int
    file: str
    class_name: str

    @property
    def origin(self) -> str:
        return f"{self.list}, line {self.line},"


def _read(path: Path) -> Iterator[_Entry]:
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); expected a text file with lines of a path and a class.") from None
    folder = os.path.abspath(path.parent)
    for number, line in enumerate(lines, 1):
        origin = f"{path}, line {number},"
        try:
            text = line.decode("utf-8-sig").strip()  # utf-8-sig also accepts the byte order mark of Windows editors
        except UnicodeDecodeError:
            raise DataError(f"{origin} is not UTF-8; expected a path and a class.") from None
        if text and not text.startswith("#"):
            name, class_name = _fields(text, origin)
            yield _Entry(path, number, _file(name, folder, origin), class_name)


def _fields(text: str, origin: str) -> tuple[str, str]:
    name, separator, class_name = text.rpartition("\t") if "\t" in text else text.rpartition(" ")
    if not separator or not name.strip() or "\0" in text:
        raise DataError(f"{origin} is {text[:80]!r}; expected a path and a class, with a tab or a space between them.")
    return name.strip(), class_name.strip()


def _file(name: str, folder: str, origin: str) -> str:
    if not os.path.isabs(name) and ".." in name.split("/"):
        raise DataError(f"{origin} names {name}, which leads out of the list's folder; remove the line or give an absolute path.")
    if os.path.splitext(name)[1].lower() not in EXTENSION_OF:
        raise DataError(f"{origin} names {name}, expected a .jpg, .jpeg or .png file; convert it or remove the line.")
    full = os.path.normpath(os.path.join(folder, name))
    return full.removeprefix(os.path.join(folder, ""))


def _check_no_repetition(entries: list[_Entry]) -> None:
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


def _sorted_classes(names: set[str]) -> list[str]:
    try:
        return sorted(names, key=lambda name: (int(name), name))
    except ValueError:
        return sorted(names)
