"""MetricsFile: the run's own record of its metrics."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from data_pipelines.storage.files import replace_file

Row = dict[str, Any]


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

    def cut_after(self, step: int, evaluated_epochs: int) -> list[int]:
        """Remove the rows that a resume computes again: steps after `step`, and evaluations after the first `evaluated_epochs`.

        Lines that cannot be read stay as they are. Returns their numbers, from 1. A last line without its end is no such line: a
        crash cut it off, and it is removed. Raises OSError, and the file then stays as it was.
        """
        if not self.path.exists():
            return []
        kept = [
            (line, row)
            for line, row in self._lines()
            if row is None or (row["step"] <= step and ("val/top1" not in row or row["epoch"] <= evaluated_epochs))
        ]
        replace_file(self.path, lambda partial: partial.write_bytes(b"".join(line for line, _ in kept)))
        return [number for number, (_, row) in enumerate(kept, start=1) if row is None]

    def _lines(self) -> list[tuple[bytes, Row | None]]:
        """Return each line with its row, or with None if it cannot be read. A last line without its end counts only if it is whole."""
        if not self.path.exists():
            return []
        *lines, rest = self.path.read_bytes().split(b"\n")
        if _row(rest) is not None:
            lines.append(rest)
        return [(line + b"\n", _row(line)) for line in lines]


def _row(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_row = isinstance(row, dict) and all(isinstance(row.get(name), int | float) for name in ("step", "epoch"))
    return row if is_row else None
