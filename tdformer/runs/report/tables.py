"""Makes the rows and columns of the report's tables, as text and as keys to sort by."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tdformer.pages import svg_charts
from tdformer.pages.svg_charts import Scale
from tdformer.runs import config_keys, formatting
from tdformer.runs.comparison import TOP1, Comparison, Group, lower_is_better, outcome, spread, to_reference
from tdformer.runs.cost import hours_of, unit_of
from tdformer.runs.report.figures import style
from tdformer.runs.run import Run
from tdformer.runs.states import MEANING

STRIP_WIDTH = 230
"""The width in pixels of the strip chart in a row."""


@dataclass(frozen=True)
class Column:
    """The heading of a column."""

    text: str
    small: str = ""
    """Text in small letters below the heading."""
    title: str = ""
    """Text that appears under the pointer."""
    is_number: bool = True
    rises: bool = False
    """True if the first click on the heading sorts upwards."""


@dataclass(frozen=True)
class Cell:
    """The text of a cell, with the value by which its column is sorted."""

    text: str
    key: Any = ""
    small: str = ""
    is_number: bool = True


def deciding_keys(comparison: Comparison) -> list[str]:
    """Return the keys that differ and that decide about the result."""
    return [key for key in comparison.shown if config_keys.decides(key) and key not in config_keys.COST_KEYS]


def _setting_columns(keys: Iterable[str]) -> list[Column]:
    names = config_keys.short_names(list(keys))
    return [Column(name, title=key, is_number=False, rises=True) for key, name in names.items()]


def _metric_columns(metrics: Iterable[str], which: tuple[str, ...] = ("best", "last")) -> list[Column]:
    return [Column(word, metric, f"{word} {metric}", rises=lower_is_better(metric)) for metric in metrics for word in which]


def group_columns(comparison: Comparison) -> list[Column]:
    """Return the columns of the table of settings."""
    first, *others = comparison.metrics
    measured = [*_metric_columns([first]), *_metric_columns(others, ("best",))]
    cost = [Column("images/s", title="mean of the runs' medians"), Column(unit_of(comparison.runs), "mean of a run", rises=True)]
    return [*_setting_columns(deciding_keys(comparison)), Column("runs"), *measured, *cost]


def group_row(comparison: Comparison, index: int, group: Group, along: Scale | None) -> dict[str, Any]:
    """Return one row of the table of settings. `along` is the scale of its strip chart."""
    cells = [_config_cell(group.setting[key]) for key in deciding_keys(comparison)]
    cells.append(Cell(str(len(group.runs)), len(group.runs), "; ".join(group.notes)))
    first, *others = comparison.metrics
    for metric, which in ((first, "best"), (first, "last"), *((metric, "best") for metric in others)):
        found = group.spread(metric, which)
        cells.append(Cell(formatting.spread_of(metric, found), found.mean if found else ""))
    for values, text in (([run.images_per_s for run in group.runs], formatting.speed), (map(hours_of, group.runs), formatting.hours)):
        cost = spread([value for value in values if value is not None])
        cells.append(Cell(text(cost.mean if cost else None), cost.mean if cost else ""))
    found = group.spread(first)
    strip = None
    if along and found:
        bests = [result.best.value for run in group.runs if (result := outcome(run, first))]
        strip = svg_charts.strip(bests, found.mean, found.deviation, style(index), along)
    return {"tag": formatting.tag(index), "style": style(index), "cells": cells, "strip": strip}


def reference_rows(comparison: Comparison, along: Scale | None) -> list[dict[str, Any]]:
    """Return the rows with numbers of the paper. There are none where the first metric is no top-1 accuracy."""
    if not comparison.metrics[0].startswith("val/top1"):
        return []
    rows = []
    for row in comparison.references:
        is_inside = along is not None and along.low <= row.top1 <= along.high
        strip = svg_charts.strip([row.top1], row.top1, None, "rest", along) if along and is_inside else None
        rows.append({**vars(row), "value": f"{row.top1:.2f}", "strip": strip})
    return rows


def strip_scale(comparison: Comparison) -> Scale | None:
    """Return the common scale of the strip charts. It covers all runs, and the numbers of the paper if they are near."""
    metric = comparison.metrics[0]
    values = [found.best.value for run in comparison.runs if (found := outcome(run, metric)) and abs(found.best.value) < float("inf")]
    if not values:
        return None
    span = max(values) - min(values)
    near = [row.top1 for row in comparison.references if min(values) - 2 * span <= row.top1 <= max(values) + 2 * span]
    return svg_charts.scale([*values, *(near if metric.startswith("val/top1") else [])], 6, STRIP_WIDTH)


def run_columns(comparison: Comparison) -> list[Column]:
    """Return the columns of the table of runs."""
    what = [Column("run", is_number=False, rises=True), Column("state", is_number=False, rises=True)]
    cost = [Column("images/s", title="median"), Column(unit_of(comparison.runs), rises=True)]
    where = [Column("device", is_number=False, rises=True), Column("last written", is_number=False)]
    measured = [*_metric_columns(comparison.metrics), *([Column("to reference", TOP1)] if has_reference(comparison) else [])]
    return [*what, *_setting_columns(comparison.shown), Column("epoch"), *measured, *cost, *where]


def has_reference(comparison: Comparison) -> bool:
    """Tell whether a run was compared with a reference curve while it trained."""
    return any(to_reference(run) is not None for run in comparison.runs)


def run_row(comparison: Comparison, index: int, run: Run) -> dict[str, Any]:
    """Return one row of the table of runs. `index` is the place of the group of the run."""
    name = comparison.names[run]
    cells = [
        Cell(name, name, is_number=False),
        Cell(run.state, run.state, is_number=False, small="" if run.sessions else MEANING[run.state]),
    ]
    cells += [_config_cell(config_keys.value(run.config, key)) for key in comparison.shown]
    total = f"of {run.config.get('training.epochs', '?')}"
    cells.append(Cell(f"{run.last.epoch:g}", run.last.epoch, total) if run.last else Cell(formatting.NOTHING))
    for metric in comparison.metrics:
        found = outcome(run, metric)
        for point, small in ((found.best, f"@ {found.best.epoch:g}"), (found.last, "")) if found else ((None, ""),) * 2:
            cells.append(Cell(formatting.number(metric, point.value if point else None), point.value if point else "", small))
    if has_reference(comparison):
        points = to_reference(run)
        cells.append(Cell(formatting.signed(TOP1, points), "" if points is None else points))
    spent, speed = hours_of(run), run.images_per_s
    cells += [Cell(formatting.speed(speed), speed or ""), Cell(formatting.hours(spent), "" if spent is None else spent)]
    device = f"{run.sessions[-1].world_size} × {run.sessions[-1].device or 'CPU'}" if run.sessions else formatting.NOTHING
    cells += [Cell(device, device, is_number=False), Cell(formatting.when(run.changed), run.changed, is_number=False)]
    return {"tag": formatting.tag(index), "style": style(index), "cells": cells}


def _config_cell(value: Any) -> Cell:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return Cell(formatting.config_value(value), value if is_number else formatting.config_value(value), is_number=False)
