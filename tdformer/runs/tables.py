"""What the report's tables hold, as text and as keys to sort by."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tdformer.runs import charts, configs, wording
from tdformer.runs.charts import Scale
from tdformer.runs.comparing import Comparison, Group, lower_is_better, outcome, spread
from tdformer.runs.figures import COLOURS, hours_of, style, unit_of
from tdformer.runs.reading import Run
from tdformer.runs.states import MEANING

STRIP = 230
"""Pixels."""


@dataclass(frozen=True)
class Column:
    text: str
    small: str = ""
    title: str = ""
    is_number: bool = True
    rises: bool = False
    """First sorted upwards."""


@dataclass(frozen=True)
class Cell:
    text: str
    key: Any = ""
    small: str = ""
    is_number: bool = True


def page(comparison: Comparison) -> dict[str, Any]:
    """By the names that the template has for them."""
    runs, groups, metric = comparison.runs, comparison.groups, comparison.metrics[0]
    along = _along(comparison)
    columns = _group_columns(comparison)
    plural = "s" if len(runs) != 1 else ""
    hours = [spent for run in runs if (spent := hours_of(run)) is not None]
    facts = [f"{len(groups)} setting{'s' if len(groups) != 1 else ''}"] + (
        [f"{wording.hours(sum(hours))} {unit_of(runs)}"] if hours else []
    )
    names = comparison.names
    return {
        "title": f"Comparing {len(runs)} run{plural}",
        "subtitle": " · ".join([*facts, f"made {wording.when(time.time())}"]),
        "best": _best(comparison),
        "warnings": [f"The runs of setting {tag} are not equal: {told}." for tag, told in _unequal(groups)],
        "metric": f"best {metric}" + (", the lowest" if lower_is_better(metric) else ""),
        "group_columns": columns,
        "strip_ends": [wording.number(metric, end) for end in (along.low, along.high)] if along else [],
        "groups": [_group(comparison, index, group, along) for index, group in enumerate(groups)],
        "references": _references(comparison, along),
        "settings_width": len(_deciding(comparison)) + 1,
        "rest_width": len(columns) - len(_deciding(comparison)) - 2,
        "curves_meaning": _curves_meaning(comparison),
        "run_columns": _run_columns(comparison),
        "runs": [_run(comparison, index, run) for run, index in _with_groups(comparison)],
        "notes": [{"run": names[run], "text": note} for run in runs for note in run.notes],
        "differing": [{"key": key, "values": _values(runs, key)} for key in comparison.differing],
        "shared": _shared(comparison),
        "footer": "Means are over runs that differ in nothing but their seed; ± is the sample standard deviation. Best values are chosen "
        "on the validation set itself, epoch by epoch, as the paper's are likely to be. Hours are those of all sessions, times processes.",
    }


def _unequal(groups: list[Group]) -> list[tuple[str, str]]:
    return [(wording.tag(index), "; ".join(group.notes)) for index, group in enumerate(groups[:COLOURS]) if group.notes]


def _deciding(comparison: Comparison) -> list[str]:
    return [key for key in comparison.shown if configs.decides(key) and key not in configs.OF_COST]


def _setting_columns(keys: Iterable[str]) -> list[Column]:
    names = configs.short_names(list(keys))
    return [Column(name, title=key, is_number=False, rises=True) for key, name in names.items()]


def _metric_columns(metrics: Iterable[str], which: tuple[str, ...] = ("best", "last")) -> list[Column]:
    return [Column(word, metric, f"{word} {metric}", rises=lower_is_better(metric)) for metric in metrics for word in which]


def _group_columns(comparison: Comparison) -> list[Column]:
    first, *others = comparison.metrics
    measured = [*_metric_columns([first]), *_metric_columns(others, ("best",))]
    cost = [Column("images/s", title="mean of the runs' medians"), Column(unit_of(comparison.runs), "mean of a run", rises=True)]
    return [*_setting_columns(_deciding(comparison)), Column("runs"), *measured, *cost]


def _group(comparison: Comparison, index: int, group: Group, along: Scale | None) -> dict[str, Any]:
    cells = [_config_cell(group.setting[key]) for key in _deciding(comparison)]
    cells.append(Cell(str(len(group.runs)), len(group.runs), "; ".join(group.notes)))
    first, *others = comparison.metrics
    for metric, which in ((first, "best"), (first, "last"), *((metric, "best") for metric in others)):
        found = group.spread(metric, which)
        cells.append(Cell(wording.spread_of(metric, found), found.mean if found else ""))
    for values, text in (([run.images_per_s for run in group.runs], wording.speed), (map(hours_of, group.runs), wording.hours)):
        cost = spread([value for value in values if value is not None])
        cells.append(Cell(text(cost.mean if cost else None), cost.mean if cost else ""))
    found = group.spread(first)
    strip = None
    if along and found:
        bests = [result.best.value for run in group.runs if (result := outcome(run, first))]
        strip = charts.strip(bests, found.mean, found.deviation, style(index), along)
    return {"tag": wording.tag(index), "style": style(index), "cells": cells, "strip": strip}


def _references(comparison: Comparison, along: Scale | None) -> list[dict[str, Any]]:
    if not comparison.metrics[0].startswith("val/top1"):
        return []
    rows = []
    for row in comparison.references:
        is_inside = along is not None and along.low <= row.top1 <= along.high
        strip = charts.strip([row.top1], row.top1, None, "rest", along) if along and is_inside else None
        rows.append({**vars(row), "value": f"{row.top1:.2f}", "strip": strip})
    return rows


def _along(comparison: Comparison) -> Scale | None:
    """The common scale of the strips: of all runs, and the paper's numbers if they are not far away."""
    metric = comparison.metrics[0]
    values = [found.best.value for run in comparison.runs if (found := outcome(run, metric)) and abs(found.best.value) < float("inf")]
    if not values:
        return None
    span = max(values) - min(values)
    near = [row.top1 for row in comparison.references if min(values) - 2 * span <= row.top1 <= max(values) + 2 * span]
    return charts.scale([*values, *(near if metric.startswith("val/top1") else [])], 6, STRIP)


def _best(comparison: Comparison) -> dict[str, str] | None:
    groups, names, metric = comparison.groups, comparison.names, comparison.metrics[0]
    found = groups[0].spread(metric) if groups else None
    if found is None:
        return None
    first = groups[0].runs[0]
    at = outcome(first, metric)
    seeds = ", ".join(sorted(map(str, groups[0].seeds)))
    if found.count > 1:
        meaning = f"best {metric} of {found.count} runs (seeds {seeds}): mean ± standard deviation."
        meaning += (
            f" The best of them, {names[first]}, has {wording.number(metric, at.best.value)} at epoch {at.best.epoch:g}." if at else ""
        )
    else:
        meaning = f"best {metric}, of one run" + (f" at epoch {at.best.epoch:g}." if at else ".")
    others = [other.mean for group in groups[1:] if (other := group.spread(metric))]
    if others:
        meaning += f" B is {wording.number(metric, abs(found.mean - others[0]))} behind."
    if others and found.deviation is not None:
        close = sum(abs(found.mean - other) <= found.deviation for other in others)
        meaning += f" {close or 'No'} other setting{'s lie' if close > 1 else ' lies'} within that standard deviation."
    if len(groups) > 1 and all(len(group.runs) == 1 for group in groups):
        meaning += " No setting was run with several seeds, so how much of a difference is chance is not known."
    return {"setting": wording.setting(groups[0].setting) or names[first], "value": wording.spread_of(metric, found), "meaning": meaning}


def _curves_meaning(comparison: Comparison) -> str:
    several = any(len(group.runs) > 1 for group in comparison.groups[:COLOURS])
    parts = ["thick: mean over seeds, thin: each run"] if several else []
    if len(comparison.groups) > COLOURS:
        parts.append(f"the first {COLOURS} settings in colour")
    return "; ".join([*parts, "the first points may lie outside"])


def _run_columns(comparison: Comparison) -> list[Column]:
    what = [Column("run", is_number=False, rises=True), Column("state", is_number=False, rises=True)]
    cost = [Column("images/s", title="median"), Column(unit_of(comparison.runs), rises=True)]
    where = [Column("device", is_number=False, rises=True), Column("last written", is_number=False)]
    return [*what, *_setting_columns(comparison.shown), Column("epoch"), *_metric_columns(comparison.metrics), *cost, *where]


def _run(comparison: Comparison, index: int, run: Run) -> dict[str, Any]:
    name = comparison.names[run]
    cells = [
        Cell(name, name, is_number=False),
        Cell(run.state, run.state, is_number=False, small="" if run.sessions else MEANING[run.state]),
    ]
    cells += [_config_cell(configs.value(run.config, key)) for key in comparison.shown]
    cells.append(
        Cell(f"{run.last.epoch:g}", run.last.epoch, f"of {run.config.get('training.epochs', '?')}") if run.last else Cell(wording.NOTHING)
    )
    for metric in comparison.metrics:
        found = outcome(run, metric)
        for point, small in ((found.best, f"@ {found.best.epoch:g}"), (found.last, "")) if found else ((None, ""),) * 2:
            cells.append(Cell(wording.number(metric, point.value if point else None), point.value if point else "", small))
    spent, speed = hours_of(run), run.images_per_s
    cells += [Cell(wording.speed(speed), speed or ""), Cell(wording.hours(spent), "" if spent is None else spent)]
    device = f"{run.sessions[-1].world_size} × {run.sessions[-1].device or 'CPU'}" if run.sessions else wording.NOTHING
    cells += [Cell(device, device, is_number=False), Cell(wording.when(run.changed), run.changed, is_number=False)]
    return {"tag": wording.tag(index), "style": style(index), "cells": cells}


def _with_groups(comparison: Comparison) -> list[tuple[Run, int]]:
    index_of = {run: index for index, group in enumerate(comparison.groups) for run in group.runs}
    return [(run, index_of[run]) for run in comparison.runs]


def _config_cell(value: Any) -> Cell:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return Cell(wording.config_value(value), value if is_number else wording.config_value(value), is_number=False)


def _values(runs: list[Run], key: str) -> str:
    counts = Counter(wording.config_value(configs.value(run.config, key)) for run in runs if run.config)
    told = ", ".join(f"{value} ({count})" for value, count in counts.most_common(20))
    return told + (f", and {len(counts) - 20} others" if len(counts) > 20 else "")


def _shared(comparison: Comparison) -> list[dict[str, str]]:
    first = next((run.config for run in comparison.runs if run.config), {})
    return [{"key": key, "value": wording.config_value(value)} for key, value in first.items() if key not in comparison.differing]
