"""Draws the learning curve of a run from its metrics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

MARGINS = {"left": 0.06, "right": 0.98, "bottom": 0.13, "top": 0.88, "wspace": 0.2}
"""Parts of the picture. Margins that matplotlib finds by itself take as long as all the rest."""


def draw_learning_curve(rows: list[dict[str, Any]], path: Path, title: str, reference: Sequence[tuple[int, float]] = ()) -> None:
    """Draw loss and accuracy over epochs into a PNG. rows: those of metrics.jsonl. reference: epochs and top-1 of a training beside it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), gridspec_kw=MARGINS)
    figure.suptitle(title)
    for axes, names, label in ((left, ("train/loss", "val/loss"), "loss"), (right, ("val/top1",), "top-1 accuracy (%)")):
        segments = sorted({name for row in rows for name in row if name.startswith("val/top1_segment")})
        for name in (*names, *(segments if axes is right else ())):
            points = [(row["epoch"], row[name]) for row in rows if name in row]
            if points:
                last = name == "val/top1" or axes is left
                axes.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 60 else None, alpha=1 if last else 0.4)
        if axes is right and reference:
            axes.plot(*zip(*reference, strict=True), label="reference", color="grey", linestyle="--", alpha=0.7, zorder=0)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
