"""Parses a text file that lists images, one `path class` per line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_pipelines.errors import DataError
from data_pipelines.formats.images import EXTENSION_OF
from data_pipelines.storage.passing_trouble import read_error


@dataclass(frozen=True, slots=True)
class ListEntry:
    """One line of a list. file: without `.` and `..`, and relative to the list's folder if it is below it."""

    list: Path
    line: int
    file: str
    class_name: str

    @property
    def origin(self) -> str:
        return f"{self.list}, line {self.line},"


def read_list(path: Path) -> Iterator[ListEntry]:
    """Yield the entries of a list. Raises DataError, naming the line, for a malformed line or path."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        damage = f"{path} cannot be read ({error.strerror}); expected a text file with lines of a path and a class."
        raise read_error(path, error, damage) from None
    folder = os.path.abspath(path.parent)
    for number, line in enumerate(lines, 1):
        origin = f"{path}, line {number},"
        try:
            text = line.decode("utf-8-sig").strip()  # utf-8-sig also accepts the byte order mark of Windows editors
        except UnicodeDecodeError:
            raise DataError(f"{origin} is not UTF-8; expected a path and a class.") from None
        if text and not text.startswith("#"):
            name, class_name = _fields(text, origin)
            yield ListEntry(path, number, _file(name, folder, origin), class_name)


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
