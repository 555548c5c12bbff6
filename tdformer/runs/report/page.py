"""Collects everything that the report's template shows: sentences, tables and notes."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from tdformer.runs import config_keys, formatting
from tdformer.runs.comparison import Comparison, Group, lower_is_better, outcome
from tdformer.runs.cost import hours_of, unit_of
from tdformer.runs.paired import differences
from tdformer.runs.report.figures import COLOURS
from tdformer.runs.report.tables import deciding_keys, group_columns, group_row, reference_rows, run_columns, run_row, strip_scale
from tdformer.runs.run import Run


def page(comparison: Comparison) -> dict[str, Any]:
    """Return the variables of the template report.html.j2, by name."""
    runs, groups, metric = comparison.runs, comparison.groups, comparison.metrics[0]
    along = strip_scale(comparison)
    columns = group_columns(comparison)
    plural = "s" if len(runs) != 1 else ""
    hours = [spent for run in runs if (spent := hours_of(run)) is not None]
    facts = [f"{len(groups)} setting{'s' if len(groups) != 1 else ''}"] + (
        [f"{formatting.hours(sum(hours))} {unit_of(runs)}"] if hours else []
    )
    names = comparison.names
    return {
        "title": f"Comparing {len(runs)} run{plural}",
        "subtitle": " · ".join([*facts, f"made {formatting.when(time.time())}"]),
        "best": _best(comparison),
        "warnings": [f"The runs of setting {tag} are not equal: {remark}." for tag, remark in _unequal(groups)],
        "metric": f"best {metric}" + (", the lowest" if lower_is_better(metric) else ""),
        "group_columns": columns,
        "strip_ends": [formatting.number(metric, end) for end in (along.low, along.high)] if along else [],
        "groups": [group_row(comparison, index, group, along) for index, group in enumerate(groups)],
        "references": reference_rows(comparison, along),
        "paired": _paired(comparison),
        "settings_width": len(deciding_keys(comparison)) + 1,
        "rest_width": len(columns) - len(deciding_keys(comparison)) - 2,
        "curves_meaning": _curves_meaning(comparison),
        "run_columns": run_columns(comparison),
        "runs": [run_row(comparison, index, run) for run, index in _with_groups(comparison)],
        "notes": [{"run": names[run], "text": note} for run in runs for note in run.notes],
        "differing": [{"key": key, "values": _values(runs, key)} for key in comparison.differing],
        "shared": _shared(comparison),
        "footer": "Means are over runs that differ in nothing but their seed; ± is the sample standard deviation. Best values are chosen "
        "on the validation set itself, epoch by epoch, as the paper's are likely to be. Hours are those of all sessions, times processes.",
    }


def _paired(comparison: Comparison) -> list[list[str]]:
    """Return a row for each metric and each setting that shares seeds with the first one."""
    return [
        [f"{formatting.tag(place)} - A", metric, ", ".join(map(str, pair.seeds)), *formatting.paired(metric, pair)]
        for metric in comparison.metrics
        for place, pair in differences(comparison, metric)
    ]


def _unequal(groups: list[Group]) -> list[tuple[str, str]]:
    return [(formatting.tag(index), "; ".join(group.notes)) for index, group in enumerate(groups[:COLOURS]) if group.notes]


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
            f" The best of them, {names[first]}, has {formatting.number(metric, at.best.value)} at epoch {at.best.epoch:g}." if at else ""
        )
    else:
        meaning = f"best {metric}, of one run" + (f" at epoch {at.best.epoch:g}." if at else ".")
    others = [other.mean for group in groups[1:] if (other := group.spread(metric))]
    if others:
        meaning += f" B is {formatting.number(metric, abs(found.mean - others[0]))} behind."
    if others and found.deviation is not None:
        close = sum(abs(found.mean - other) <= found.deviation for other in others)
        meaning += f" {close or 'No'} other setting{'s lie' if close > 1 else ' lies'} within that standard deviation."
    if len(groups) > 1 and all(len(group.runs) == 1 for group in groups):
        meaning += " No setting was run with several seeds, so how much of a difference is chance is not known."
    return {
        "setting": formatting.setting(groups[0].setting) or names[first],
        "value": formatting.spread_of(metric, found),
        "meaning": meaning,
    }


def _curves_meaning(comparison: Comparison) -> str:
    several = any(len(group.runs) > 1 for group in comparison.groups[:COLOURS])
    parts = ["thick: mean over seeds, thin: each run"] if several else []
    if len(comparison.groups) > COLOURS:
        parts.append(f"the first {COLOURS} settings in colour")
    return "; ".join([*parts, "the first points may lie outside"])


def _with_groups(comparison: Comparison) -> list[tuple[Run, int]]:
    index_of = {run: index for index, group in enumerate(comparison.groups) for run in group.runs}
    return [(run, index_of[run]) for run in comparison.runs]


def _values(runs: list[Run], key: str) -> str:
    counts = Counter(formatting.config_value(config_keys.value(run.config, key)) for run in runs if run.config)
    listed = ", ".join(f"{value} ({count})" for value, count in counts.most_common(20))
    return listed + (f", and {len(counts) - 20} others" if len(counts) > 20 else "")


def _shared(comparison: Comparison) -> list[dict[str, str]]:
    first = next((run.config for run in comparison.runs if run.config), {})
    return [{"key": key, "value": formatting.config_value(value)} for key, value in first.items() if key not in comparison.differing]
