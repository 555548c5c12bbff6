"""Spool: reads the points of a metrics file that MLflow has not taken yet."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

NUMBERS = (int, float)
"""Types of JSON numbers. In Python true is an int too, and is no metric."""

NAME = re.compile(r"[\w.\- :]+(/[\w.\- :]+)+")
LARGEST = 2**53
"""Whole numbers below this one are exact in JSON."""


class Point(NamedTuple):
    """One value of one metric. time_ms: milliseconds since 1970."""

    name: str
    value: float
    time_ms: int
    step: int


class Spool:
    """Reads a file of JSON rows from where it stopped. Rows have `step`, `time` in seconds since 1970, and metrics (names with a slash).

    `advance` says that MLflow has taken what was read. Until then it is read again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._arrived = self._read = 0

    def points(self) -> Iterator[Point]:
        """Yield the points that MLflow has not taken, in the order of the file. A row that is still being written comes the next time."""
        self._read = self._arrived
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._arrived)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._read += len(line)
                yield from _points(line)

    def advance(self) -> None:
        self._arrived = self._read

    def rewind(self) -> None:
        """Start again from the first row."""
        self._arrived = self._read = 0


def _points(line: bytes) -> Iterator[Point]:
    """Yield the points of a row. A damaged row has none.

    Values that MLflow would refuse are left out, because it would then refuse their whole batch.
    """
    try:
        row: dict[str, Any] = json.loads(line)
        step, time_ms = int(row["step"]), int(row.get("time", 0) * 1000)
        values = {name: float(value) for name, value in row.items() if NAME.fullmatch(name) and type(value) in NUMBERS}
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return
    if 0 <= step < LARGEST and 0 <= time_ms < LARGEST:
        yield from (Point(name, value, time_ms, step) for name, value in values.items())
