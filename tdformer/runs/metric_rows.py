"""The rows of metrics.jsonl that a comparison needs, without reading the others: of a megabyte per run, 500 times, there is no time to.

Every evaluation is read. Of the training rows, which are ten times as many, some at equal distances are, and the last one; where a
training metric is asked for by name, its smallest and largest values are looked up among all rows.
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
"""As JSON has them: true is none."""
EVALUATION, TRAINING = b'"val/', b'"train/'


class Point(NamedTuple):
    """One value of one metric."""

    step: int
    epoch: float
    value: float


@dataclass(frozen=True)
class MetricRows:
    """In the order of the file."""

    rows: list[dict[str, Any]]
    unreadable: int = 0
    """Rows that were looked at and are none."""
    ends_within_a_row: bool = False
    """As while it is written, or after a crash."""
    _series: dict[str, list[Point]] = field(default_factory=dict, repr=False)
    """By name, once asked for."""

    def series(self, name: str) -> list[Point]:
        if name not in self._series:
            points = [Point(row["step"], row["epoch"], row[name]) for row in self.rows if type(row.get(name)) in NUMBERS]
            self._series[name] = points
        return self._series[name]

    def names(self) -> list[str]:
        """Of all metrics."""
        found = dict.fromkeys(name for row in self.rows for name, value in row.items() if "/" in name and _is_number(value))
        return sorted(found)

    def slim(self, names: Iterable[str]) -> MetricRows:
        """Evaluations whole, and the last row of training; of the others these metrics alone."""
        kept = ("step", "epoch", "time", *names)
        last = max((index for index, row in enumerate(self.rows) if "val/top1" not in row), default=None)
        rows = [
            row if index == last or "val/top1" in row else {name: row[name] for name in kept if name in row}
            for index, row in enumerate(self.rows)
        ]
        return replace(self, rows=rows, _series={})

    @property
    def last_time(self) -> float | None:
        return next((row["time"] for row in reversed(self.rows) if _is_number(row.get("time"))), None)


def read(path: Path, samples: int, extremes_of: Iterable[str] = ()) -> MetricRows:
    """samples: about how many training rows. Raises OSError."""
    text = path.read_bytes()
    starts = {*_evaluations(text), *_spread(text, samples)}
    for name in extremes_of:
        starts.update(_extremes(text, name))
    lines = [text[start : _end(text, start)] for start in sorted(starts)]
    rows = _rows(lines)
    is_cut = bool(text) and not text.endswith(b"\n") and not _rows([text[text.rfind(b"\n") + 1 :]])
    return MetricRows(rows, len(lines) - len(rows) - is_cut, is_cut)


def _evaluations(text: bytes) -> Iterator[int]:
    """Where the rows of evaluations begin."""
    at = text.find(EVALUATION)
    while at >= 0:
        yield text.rfind(b"\n", 0, at) + 1
        at = text.find(EVALUATION, _end(text, at))


def _spread(text: bytes, samples: int) -> Iterator[int]:
    """Where rows at about equal distances begin, the last one and the last of training among them."""
    if not text:
        return
    for number in range(samples):
        yield text.rfind(b"\n", 0, number * len(text) // samples) + 1
    yield text.rfind(b"\n", 0, len(text) - 1) + 1
    if (last := text.rfind(TRAINING)) >= 0:
        yield text.rfind(b"\n", 0, last) + 1


def _extremes(text: bytes, name: str) -> Iterator[int]:
    """Where the rows with a metric's smallest and largest finite values begin."""
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
    """Of those lines that are rows. All at once, which is twice as fast; one by one if some are damaged."""
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
