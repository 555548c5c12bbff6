"""Makes the figures of a report: a chart of each metric, and quality against cost."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tdformer.pages import svg_charts
from tdformer.pages.svg_charts import Curve
from tdformer.runs import formatting
from tdformer.runs.comparison import REFERENCE, TOP1, Comparison, Group, lower_is_better, outcome
from tdformer.runs.cost import hours_of, unit_of
from tdformer.runs.run import TRAIN_LOSS

COLOURS = 8
"""The number of groups with a colour. All others are grey, because more colours look alike."""
MANY_RUNS, POINTS, POINTS_OF_MANY = 50, 300, 50
"""Above MANY_RUNS runs, a curve has at most POINTS_OF_MANY points instead of POINTS."""
XY = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Figure:
    """A chart with its title and a short explanation."""

    title: str
    meaning: str
    picture: Markup


def style(index: int) -> str:
    """Return the CSS class for the colour of the group at this place."""
    return f"c{index}" if index < COLOURS else "rest"


def figures(comparison: Comparison) -> list[Figure]:
    """Return the chart of the first metric, then quality against cost, then the charts of the other metrics and of the training loss."""
    made = []
    at_most = POINTS if len(comparison.runs) <= MANY_RUNS else POINTS_OF_MANY
    for metric in dict.fromkeys((*comparison.metrics, TRAIN_LOSS)):
        lines = [line for index, group in enumerate(comparison.groups) for line in _lines(comparison, group, index, metric, at_most)]
        lines += _reference_lines(comparison) if metric == TOP1 else []
        picture = svg_charts.curves(lines, "epoch", svg_charts.IGNORED_START)
        if picture is not None:
            meaning = "lower is better" if lower_is_better(metric) else ""
            made.append(Figure(metric, meaning, picture))
    cost = _cost(comparison)
    return [*made[:1], *([cost] if cost else []), *made[1:]]


def mean_curve(curves: Sequence[XY]) -> XY:
    """Return the mean of curves over the range that all of them cover. Between its points a curve is interpolated linearly."""
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
    tag, colour = formatting.tag(index), style(index)
    points = {run: [(point.epoch, point.value) for point in run.metrics.series(metric)] for run in group.runs}
    points = {run: list(svg_charts.thinned(sorted(curve), at_most)) for run, curve in points.items() if curve}
    if len(points) <= 1 or colour == "rest":
        return [Curve(curve, tag, colour, f"{tag} {comparison.names[run]}", is_mean=colour != "rest") for run, curve in points.items()]
    lines = [Curve(curve, tag, colour, f"{tag} {comparison.names[run]}") for run, curve in points.items()]
    title = f"{tag} mean of {len(points)} runs: {formatting.setting(group.setting)}"
    return [*lines, Curve(mean_curve(list(points.values())), tag, colour, title, is_mean=True)]


def _reference_lines(comparison: Comparison) -> list[Curve]:
    """Return a curve for each training.reference of the runs, as far as a run has come."""
    found: dict[str, dict[float, float]] = {}
    for run in comparison.runs:
        points = {point.epoch: point.value for point in run.metrics.series(REFERENCE)}
        found.setdefault(str(run.config.get("training.reference")), {}).update(points)
    return [
        Curve(sorted(points.items()), "ref", "reference", f"reference {name}", is_mean=True) for name, points in found.items() if points
    ]


def _cost(comparison: Comparison) -> Figure | None:
    metric, marks = comparison.metrics[0], []
    for index, group in enumerate(comparison.groups):
        for run in group.runs:
            found, spent = outcome(run, metric), hours_of(run)
            if found and spent is not None:
                title = f"{comparison.names[run]}: {formatting.number(metric, found.best.value)} after {formatting.hours(spent)} hours"
                marks.append(Curve([(spent, found.best.value)], formatting.tag(index), style(index), title))
    unit = unit_of(comparison.runs)
    picture = svg_charts.scatter(marks, unit, "") if len(marks) > 1 else None
    return Figure(f"best {metric} against cost", f"{unit} of a run", picture) if picture is not None else None
