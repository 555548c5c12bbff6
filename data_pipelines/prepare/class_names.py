"""Reads or makes the names of classes that shards know by number only."""

from __future__ import annotations

from pathlib import Path

from data_pipelines.errors import DataError
from data_pipelines.storage.passing_trouble import read_error


def read_class_names(path: Path) -> list[str]:
    """Read a text file with one class name per line. Line 1 names class 0. Raises DataError for an unreadable file or an empty line."""
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise read_error(path, error, f"{path} cannot be read ({reason}); give a text file with one class name per line.") from None
    if "" in names:
        raise DataError(f"{path} names no class in line {names.index('') + 1}; expected one name per line, for the numbers 0, 1, ….")
    return names


def numbered_class_names(classes: int) -> list[str]:
    """Name each class by its number: "0", "1", …"""
    return [str(number) for number in range(classes)]
