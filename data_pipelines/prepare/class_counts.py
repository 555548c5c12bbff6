"""Counts the samples of each class in a data set, so that a class that is nearly or wholly missing is seen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipelines.formats.index import find_index
from data_pipelines.formats.manifest_reader import read_manifest


@dataclass(frozen=True)
class ClassCounts:
    """The smallest, median and largest number of samples in a class, and the names of the classes that have none."""

    smallest: int
    median: float
    largest: int
    empty: list[str]

    def described(self) -> dict[str, object]:
        """The counts as columns of a table: a text, and the names of the empty classes if there are any."""
        return {"samples_per_class": str(self), **({"empty_classes": self.empty} if self.empty else {})}

    def __str__(self) -> str:
        return f"{self.smallest} to {self.largest}, median {self.median:g}"


def count_classes(folder: Path) -> ClassCounts | None:
    """Count the samples per class of a complete data set in a local folder. Returns None if its index is not there."""
    manifest = read_manifest(folder)
    if (index := find_index(folder, manifest.shards)) is None:
        return None
    counts = np.bincount(index["label"], minlength=len(manifest.classes))[: len(manifest.classes)]
    empty = [name for name, count in zip(manifest.classes, counts, strict=True) if not count]
    return ClassCounts(int(counts.min()), float(np.median(counts)), int(counts.max()), empty)
