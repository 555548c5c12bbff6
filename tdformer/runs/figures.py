"""The curves of a report, and quality against cost."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tdformer.runs import charts, wording
from tdformer.runs.charts import Curve
from tdformer.runs.comparing import Comparison, Group, lower_is_better, outcome
from tdformer.runs.reading import TRAIN_LOSS, Run

COLOURS = 8
"""Groups that have one; the others are grey. More are not told apart."""
MANY_RUNS, POINTS, POINTS_OF_MANY = 50, 300, 50
XY = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Figure:
    title: str
    meaning: str
    picture: Markup


def style(index: int) -> str:
    """Class of a group's colour."""
    return f"c{index}" if index < COLOURS else "rest"


def figures(comparison: Comparison) -> list[Figure]:
    made = []
    at_most = POINTS if len(comparison.runs) <= MANY_RUNS else POINTS_OF_MANY
    for metric in dict.fromkeys((*comparison.metrics, TRAIN_LOSS)):
        lines = [line for index, group in enumerate(comparison.groups) for line in _lines(comparison, group, index, metric, at_most)]
        picture = charts.curves(lines, "epoch")
        if picture is not None:
            meaning = "lower is better" if lower_is_better(metric) else ""
            made.append(Figure(metric, meaning, picture))
    cost = _cost(comparison)
    return [*made[:1], *([cost] if cost else []), *made[1:]]


def hours_of(run: Run) -> float | None:
    return run.gpu_hours if run.gpu_hours is not None else run.cpu_process_hours


def unit_of(runs: Sequence[Run]) -> str:
    """Of hours_of."""
    if all(run.gpu_hours is None for run in runs) and any(run.cpu_process_hours is not None for run in runs):
        return "CPU process hours"
    return "GPU hours"


def mean_curve(curves: Sequence[XY]) -> XY:
    """Over the part that all have; between the points of a curve by straight lines."""
    if not curves or not all(curves):
        return []
    low, high = max(curve[0][0] for curve in curves), min(curve[-1][0] for curve in curves)
    xs = [x for x, _ in curves[0] if low <= x <= high]
    return [(x, sum(_at(x, curve) for curve in curves) / len(curves)) for x in xs]


def _at(x: float, curve: XY) -> float:
    after = bisect_left(curve, x, key=lambda point: point[0])
    right = curve[after]
    if right[0] == x or after == 0:
        return right[1]
    left = curve[after - 1]
    return left[1] + (right[1] - left[1]) * (x - left[0]) / (right[0] - left[0])


def _lines(comparison: Comparison, group: Group, index: int, metric: str, at_most: int) -> list[Curve]:
    tag, colour = wording.tag(index), style(index)
    points = {run: [(point.epoch, point.value) for point in run.metrics.series(metric)] for run in group.runs}
    points = {run: list(charts.thinned(sorted(curve), at_most)) for run, curve in points.items() if curve}
    if len(points) <= 1 or colour == "rest":
        return [Curve(curve, tag, colour, f"{tag} {comparison.names[run]}", is_mean=colour != "rest") for run, curve in points.items()]
    lines = [Curve(curve, tag, colour, f"{tag} {comparison.names[run]}") for run, curve in points.items()]
    title = f"{tag} mean of {len(points)} runs: {wording.setting(group.setting)}"
    return [*lines, Curve(mean_curve(list(points.values())), tag, colour, title, is_mean=True)]


def _cost(comparison: Comparison) -> Figure | None:
    metric, marks = comparison.metrics[0], []
    for index, group in enumerate(comparison.groups):
        for run in group.runs:
            found, spent = outcome(run, metric), hours_of(run)
            if found and spent is not None:
                title = f"{comparison.names[run]}: {wording.number(metric, found.best.value)} after {wording.hours(spent)} hours"
                marks.append(Curve([(spent, found.best.value)], wording.tag(index), style(index), title))
    unit = unit_of(comparison.runs)
    picture = charts.scatter(marks, unit, "") if len(marks) > 1 else None
    return Figure(f"best {metric} against cost", f"{unit} of a run", picture) if picture is not None else None
