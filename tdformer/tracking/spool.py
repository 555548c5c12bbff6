"""Spool: reads the points of a metrics file that MLflow has not taken yet."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tdformer.rundir.metrics_file import NUMBERS, in_order

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
        """Yield the points that MLflow has not taken, in the order of the file. A row that is still being written comes the next time.

        A row whose step does not fit in is damaged, and has no points: MLflow would take it for the last one.
        """
        self._read = self._arrived
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._arrived)
            fits = in_order([row.step for line in file if (row := _row(line))])
            file.seek(self._arrived)
            place = iter(fits)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._read += len(line)
                if (row := _row(line)) and next(place):
                    yield from row.points

    def advance(self) -> None:
        self._arrived = self._read

    def rewind(self) -> None:
        """Start again from the first row."""
        self._arrived = self._read = 0


class _Row(NamedTuple):
    """A row of the file."""

    step: int
    points: list[Point]


def _row(line: bytes) -> _Row | None:
    """Return the row of a line. None if it is damaged, or not whole.

    Values that MLflow would refuse are left out, because it would then refuse their whole batch.
    """
    if not line.endswith(b"\n"):
        return None
    try:
        row: dict[str, Any] = json.loads(line)
        step, time_ms = int(row["step"]), int(row.get("time", 0) * 1000)
        values = {name: float(value) for name, value in row.items() if NAME.fullmatch(name) and type(value) in NUMBERS}
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None
    if not (0 <= step < LARGEST and 0 <= time_ms < LARGEST):
        return None
    return _Row(step, [Point(name, value, time_ms, step) for name, value in values.items()])
