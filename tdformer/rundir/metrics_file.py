"""MetricsFile: the run's own record of its metrics."""

from __future__ import annotations

import json
import math
import os
import re
import time
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipelines.storage.files import replace_file

Row = dict[str, Any]
NUMBERS = (int, float)
"""Types of JSON numbers. In Python true is an int too, and is no metric."""

STEP = re.compile(rb'\{"step": (\d+),')
"""How each row begins."""
BEFORE_STEP = re.compile(rb'\{("(s(t(e(p("(:( \d*)?)?)?)?)?)?)?)?')
"""The beginning of a row that was cut off before the end of its step."""


@dataclass(frozen=True)
class Cut:
    """What a resume finds in the file."""

    unreadable: list[int]
    """The numbers of the lines that cannot be read, from 1."""
    gap_from: int | None
    """The step of the last row, if rows after it are missing that the run has passed. None if no row is missing."""


class MetricsFile:
    """Holds one JSON object per line: `step`, `epoch`, `time` (seconds since 1970), and metrics by name.

    MLflow's points come from this file (tdformer.tracking).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting = ""

    def append(self, step: int, epoch: float, metrics: dict[str, float]) -> None:
        """Append one row.

        Raises OSError if the disk does not take it. The file then stays as it was, and the row is written together with the next one.
        """
        self._waiting += json.dumps({"step": step, "epoch": epoch, "time": time.time(), **metrics}) + "\n"
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("a") as file:
                file.write(self._waiting)
        except OSError:
            with suppress(OSError):
                os.truncate(self.path, size)  # a row that is cut off could not be read
            raise
        self._waiting = ""

    def rows(self) -> list[Row]:
        """Return the rows that can be read, in the order of the file. Raises OSError."""
        return [row for _, row in self._lines() if row is not None]

    def cut_after(self, step: int, evaluated_epochs: int, log_every: int) -> Cut:
        """Remove the rows that a resume computes again: steps after `step`, and evaluations after the first `evaluated_epochs`.

        Lines that cannot be read stay as they are. Only a last row that a crash cut off is removed, if it would be computed again.
        log_every: steps between two rows. Raises OSError, and the file then stays as it was.
        """
        lines = self._lines()
        if lines and lines[-1][1] is None and _is_cut_off_after(step, lines[-1][0]):
            lines.pop()
        kept = [
            (line, row)
            for line, row in lines
            if row is None or (row["step"] <= step and ("val/top1" not in row or row["epoch"] <= evaluated_epochs))
        ]
        if self.path.exists():
            replace_file(self.path, lambda partial: partial.write_bytes(b"".join(line for line, _ in kept)))
        return Cut([number for number, (_, row) in enumerate(kept, start=1) if row is None], _gap(kept, step, evaluated_epochs, log_every))

    def _lines(self) -> list[tuple[bytes, Row | None]]:
        """Return each line with its row, or with None if it cannot be read. A row whose step does not fit in cannot be read either."""
        if not self.path.exists():
            return []
        lines = self.path.read_bytes().split(b"\n")
        rows = [(line + b"\n", _row(line)) for line in (lines if lines[-1] else lines[:-1])]
        fits = iter(in_order([row["step"] for _, row in rows if row is not None]))
        return [(line, row if row is not None and next(fits) else None) for line, row in rows]


def in_order(steps: Sequence[int]) -> list[bool]:
    """Tell for each step of a file whether it fits in: as few as possible are left out so that the others never fall.

    The rows of a run are written in the order of their steps. One damaged step, larger or smaller, then costs no other row.
    """
    ends: list[int] = []  # the place of the last step of the best row so far of each length
    values: list[int] = []
    before: list[int] = []
    for place, step in enumerate(steps):
        length = bisect_right(values, step)
        before.append(ends[length - 1] if length else -1)
        values[length : length + 1] = [step]
        ends[length : length + 1] = [place]
    fits, place = [False] * len(steps), ends[-1] if ends else -1
    while place >= 0:
        fits[place] = True
        place = before[place]
    return fits


def _is_cut_off_after(step: int, line: bytes) -> bool:
    """Tell whether a line is the beginning of a row of a later step, or too short to have one."""
    if begins := STEP.match(line):
        return int(begins[1]) > step
    return BEFORE_STEP.fullmatch(line.rstrip(b"\n")) is not None


def _gap(lines: list[tuple[bytes, Row | None]], step: int, evaluated_epochs: int, log_every: int) -> int | None:
    """Return the step of the last row if several later ones are missing. Lines that cannot be read may be those rows."""
    if any(row is None for _, row in lines):
        return None
    rows = [row["step"] for _, row in lines if row is not None and "train/loss" in row]
    if not rows:  # the first row may be far away, but not an evaluated epoch
        return 0 if evaluated_epochs else None
    last, before = rows[-1], (0, *rows)[-2]
    return last if step - last > 2 * max(log_every, last - before) else None


def _row(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not all(type(value) in NUMBERS for value in row.values()):
        return None
    return row if all(math.isfinite(row.get(name, math.nan)) for name in ("step", "epoch")) else None
