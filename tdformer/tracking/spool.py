"""Points that wait in a file of the run directory until MLflow takes them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

NUMBERS = (int, float)
"""As JSON has them: true is none."""

NAME = re.compile(r"[\w.\- :]+(/[\w.\- :]+)+")
LARGEST = 2**53
"""Whole numbers that JSON carries exactly."""


class Point(NamedTuple):
    """A value of a metric."""

    name: str
    value: float
    time_ms: int
    step: int


class Spool:
    """A file of JSON rows (`step`, `time` in seconds since 1970, and metrics, whose names have a slash), read on from where one stopped.

    `advance` says that what was read has arrived; until then it is read again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._arrived = self._read = 0

    def points(self) -> Iterator[Point]:
        """Those that have not arrived, in the order of the file. A row that is still being written waits for the next time."""
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
        """Nothing is known to have arrived."""
        self._arrived = self._read = 0


def _points(line: bytes) -> Iterator[Point]:
    """A damaged row has none, and what MLflow would refuse is left out: with it, it would refuse all that comes after."""
    try:
        row: dict[str, Any] = json.loads(line)
        step, time_ms = int(row["step"]), int(row.get("time", 0) * 1000)
        values = {name: float(value) for name, value in row.items() if NAME.fullmatch(name) and type(value) in NUMBERS}
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return
    if 0 <= step < LARGEST and 0 <= time_ms < LARGEST:
        yield from (Point(name, value, time_ms, step) for name, value in values.items())
