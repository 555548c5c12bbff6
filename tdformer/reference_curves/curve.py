"""Reads a reference curve: what another training measured after each of its epochs."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from data_pipelines.errors import UserError
from tdformer.config.yaml_io import did_you_mean

FOLDER = Path(__file__).parent
EPOCH, TOP1 = "epoch", "val_top1"
MAX_ROWS = 100_000
"""A file of more epochs than any training has is refused before it is read to its end."""


@dataclass(frozen=True)
class Curve:
    """What a training measured, by epoch."""

    name: str
    columns: Mapping[str, Mapping[int, float]]
    """Each column by name: its values by epoch, counted from 0 as in timm's logs."""

    def column(self, name: str) -> Mapping[int, float]:
        """Return the values of a column by epoch, counted from 0. It is empty if the file has no such column."""
        return self.columns.get(name, {})

    def top1_after(self, epochs: int) -> float | None:
        """Return the top-1 accuracy in % after a number of whole epochs. None if the file does not say."""
        return self.column(TOP1).get(epochs - 1)


def names() -> list[str]:
    """Return the names of the published curves."""
    return sorted(path.stem for path in FOLDER.glob("*.csv"))


def published_curve(name: str) -> Curve:
    """Return a published curve by name. Raises UserError, with the most similar names, if there is none."""
    if name not in names():
        raise UserError(f"there is no published curve {name!r}{did_you_mean(name, names())} (there are: {', '.join(names())})")
    return read_curve(FOLDER / f"{name}.csv")


def read_curve(path: Path) -> Curve:
    """Read a CSV of one row for each epoch, with the columns epoch (from 0) and val_top1 (in %), and others as it likes.

    Raises UserError if the file cannot be read, lacks a column, or holds anything but finite numbers.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            if missing := {EPOCH, TOP1} - set(rows.fieldnames or ()):
                raise UserError(
                    f"{path} is no reference curve: it lacks the column {sorted(missing)[0]!r} (needed are {EPOCH} and {TOP1})."
                )
            columns: dict[str, dict[int, float]] = {name: {} for name in rows.fieldnames or () if name != EPOCH}
            for row in rows:
                _add(columns, row, path, rows.line_num)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"the reference curve {path} cannot be read ({getattr(error, 'strerror', None) or error}).") from None
    if not columns[TOP1]:
        raise UserError(f"{path} is no reference curve: it has no rows.")
    return Curve(path.stem, columns)


def _add(columns: dict[str, dict[int, float]], row: dict[str, str], path: Path, line: int) -> None:
    try:
        epoch = int(row[EPOCH])
        values = {name: float(row[name]) for name in columns if row[name].strip()}
    except (ValueError, TypeError, AttributeError):
        raise UserError(f"{path}, line {line}: every value must be a number, and {EPOCH} a whole one.") from None
    if epoch < 0 or epoch in columns[TOP1] or not all(map(math.isfinite, values.values())) or TOP1 not in values:
        raise UserError(f"{path}, line {line}: {EPOCH} must count from 0, each once, and {TOP1} must be a finite number.")
    if len(columns[TOP1]) == MAX_ROWS:
        raise UserError(f"{path} has more than {MAX_ROWS} rows, and is no reference curve.")
    for name, value in values.items():
        columns[name][epoch] = value
