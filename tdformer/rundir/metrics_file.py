"""MetricsFile: the run's own record of its metrics."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any


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
                os.truncate(self.path, size)  # reading ends at the first incomplete line
            raise
        self._waiting = ""

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows up to the first one that cannot be read."""
        if not self.path.exists():
            return []
        rows = []
        for line in self.path.read_text(errors="replace").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                break  # a crash cut it off; a resume computes the steps after it again
            if not (isinstance(row, dict) and all(isinstance(row.get(name), int | float) for name in ("step", "epoch"))):
                break
            rows.append(row)
        return rows

    def cut_after(self, step: int, evaluated_epochs: int) -> None:
        """Remove the rows that a resume computes again: steps after `step`, and evaluations after the first `evaluated_epochs`."""
        if not self.path.exists():
            return
        kept = [row for row in self.rows() if row["step"] <= step and ("val/top1" not in row or row["epoch"] <= evaluated_epochs)]
        partial = self.path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in kept))
        partial.replace(self.path)
