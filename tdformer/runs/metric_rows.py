"""Reads the rows of metrics.jsonl that a comparison needs. Parsing all rows of 500 runs, a megabyte each, would take too long.

Every row of an evaluation is read. Training rows are ten times as many. Some of them at equal distances are read, and the last one.
For training metrics that are named, the rows with the smallest and the largest value of all rows are read too.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

NUMBERS = (int, float)
"""The types of numbers in JSON. A bool is no number."""
EVALUATION, TRAINING = b'"val/', b'"train/'


class Point(NamedTuple):
    """One value of one metric."""

    step: int
    epoch: float
    value: float


@dataclass(frozen=True)
class MetricRows:
    """Rows in the order of the file."""

    rows: list[dict[str, Any]]
    unreadable: int = 0
    """The number of lines that were read and are no rows."""
    ends_within_a_row: bool = False
    """True if the last row is incomplete: it is being written, or the process crashed."""
    _series: dict[str, list[Point]] = field(default_factory=dict, repr=False)
    """A cache of `series`, by name."""

    def series(self, name: str) -> list[Point]:
        """Return the points of one metric."""
        if name not in self._series:
            points = [Point(row["step"], row["epoch"], row[name]) for row in self.rows if type(row.get(name)) in NUMBERS]
            self._series[name] = points
        return self._series[name]

    def names(self) -> list[str]:
        """Return the names of all metrics, sorted."""
        found = dict.fromkeys(name for row in self.rows for name, value in row.items() if "/" in name and _is_number(value))
        return sorted(found)

    def slim(self, names: Iterable[str]) -> MetricRows:
        """Return the rows with less content: evaluations and the last training row stay, other training rows keep these metrics alone."""
        kept = ("step", "epoch", "time", *names)
        last = max((index for index, row in enumerate(self.rows) if "val/top1" not in row), default=None)
        rows = [
            row if index == last or "val/top1" in row else {name: row[name] for name in kept if name in row}
            for index, row in enumerate(self.rows)
        ]
        return replace(self, rows=rows, _series={})

    @property
    def last_time(self) -> float | None:
        """The time of the last row in seconds since 1970."""
        return next((row["time"] for row in reversed(self.rows) if _is_number(row.get("time"))), None)


def read(path: Path, samples: int, extremes_of: Iterable[str] = ()) -> MetricRows:
    """Read the rows that are needed. Raises OSError.

    samples: about the number of training rows.
    extremes_of: metrics whose smallest and largest values must be among the rows.
    """
    text = path.read_bytes()
    starts = {*_evaluations(text), *_spread(text, samples)}
    for name in extremes_of:
        starts.update(_extremes(text, name))
    lines = [text[start : _end(text, start)] for start in sorted(starts)]
    rows = _rows(lines)
    is_cut = bool(text) and not text.endswith(b"\n") and not _rows([text[text.rfind(b"\n") + 1 :]])
    return MetricRows(rows, len(lines) - len(rows) - is_cut, is_cut)


def _evaluations(text: bytes) -> Iterator[int]:
    """Yield the offsets at which rows of evaluations begin."""
    at = text.find(EVALUATION)
    while at >= 0:
        yield text.rfind(b"\n", 0, at) + 1
        at = text.find(EVALUATION, _end(text, at))


def _spread(text: bytes, samples: int) -> Iterator[int]:
    """Yield the offsets of rows at about equal distances, of the last row, and of the last training row."""
    if not text:
        return
    for number in range(samples):
        yield text.rfind(b"\n", 0, number * len(text) // samples) + 1
    yield text.rfind(b"\n", 0, len(text) - 1) + 1
    if (last := text.rfind(TRAINING)) >= 0:
        yield text.rfind(b"\n", 0, last) + 1


def _extremes(text: bytes, name: str) -> Iterator[int]:
    """Yield the offsets of the rows with the smallest and the largest finite value of a metric."""
    found = []
    for match in re.finditer(rb'"%s": ?([^,}\n]+)' % re.escape(json.dumps(name)[1:-1].encode()), text):
        try:
            value = float(match[1])
        except ValueError:
            continue
        if math.isfinite(value):
            found.append((value, match.start()))
    for _, at in (min(found), max(found, key=lambda pair: pair[0])) if found else ():
        yield text.rfind(b"\n", 0, at) + 1


def _end(text: bytes, at: int) -> int:
    end = text.find(b"\n", at)
    return end if end >= 0 else len(text)


def _rows(lines: list[bytes]) -> list[dict[str, Any]]:
    """Parse the lines that are rows. Parsing all at once is twice as fast. If some are damaged, each is parsed alone."""
    try:
        parsed = json.loads(b"[" + b",".join(lines) + b"]")
        if len(parsed) == len(lines):
            return [row for row in parsed if _is_row(row)]
    except (ValueError, RecursionError):
        pass
    return [row for line in lines if (row := _parsed(line)) is not None]


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if _is_row(row) else None


def _is_row(row: object) -> bool:
    return isinstance(row, dict) and _is_number(row.get("step")) and _is_number(row.get("epoch"))


def _is_number(value: object) -> bool:
    return type(value) in NUMBERS
