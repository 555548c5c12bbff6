"""Prints a comparison of runs."""

from __future__ import annotations

import typer

from launch.output.runs import best_and_last, print_notes, print_title
from launch.output.tables import show_texts
from tdformer.runs import config_keys, formatting
from tdformer.runs.comparison import TOP1, Comparison, spread, to_reference
from tdformer.runs.cost import hours_of, unit_of
from tdformer.runs.paired import differences

MAX_ROWS = 40
"""The largest number of rows of a comparison. The report and --json have all rows."""


def show_comparison(comparison: Comparison) -> None:
    """Print the runs side by side, then the settings with mean and standard deviation if a setting has several runs."""
    metrics, names = comparison.metrics, config_keys.short_names(comparison.shown)
    runs = comparison.runs
    letter = {run: formatting.tag(index) for index, group in enumerate(comparison.groups) for run in group.runs}
    has_reference = any(to_reference(run) is not None for run in runs)
    columns = ["", "run", "state", *names.values(), *(f"{which} {name}" for name in metrics for which in ("best", "last"))]
    columns += [*(["to reference"] if has_reference else []), "images/s"]
    rows = []
    for run in runs[:MAX_ROWS]:
        config = [formatting.config_value(config_keys.value(run.config, key)) for key in names]
        numbers = [text for name in metrics for text in best_and_last(run, name)]
        cost = [formatting.speed(run.images_per_s), formatting.hours(hours_of(run))]
        numbers += [formatting.signed(TOP1, to_reference(run))] if has_reference else []
        rows.append([letter[run], comparison.names[run], run.state, *config, *numbers, *cost])
    show_texts([*columns, unit_of(runs)], rows, texts=range(3 + len(names)))
    _rest(len(runs), "runs")
    if any(len(group.runs) > 1 for group in comparison.groups) or comparison.references:
        print_title("Settings: mean ± standard deviation over seeds")
        _settings(comparison)
    _paired(comparison)
    print_notes({comparison.names[run]: run.notes for run in runs})


def _settings(comparison: Comparison) -> None:
    metrics, rows = comparison.metrics, []
    for index, group in enumerate(comparison.groups[:MAX_ROWS]):
        measured = [formatting.spread_of(name, group.spread(name, which)) for name in metrics for which in ("best", "last")]
        cost = spread([spent for run in group.runs if (spent := hours_of(run)) is not None])
        name = formatting.setting(group.setting) or group.runs[0].name
        remark = "; ".join(group.notes)
        rows.append([formatting.tag(index), name, str(len(group.runs)), *measured, formatting.hours(cost.mean if cost else None), remark])
    if metrics[0].startswith("val/top1"):
        for row in comparison.references:
            name = f"{row.network}, {row.dataset} at {row.image_size}"
            rows.append(["paper", name, "", f"{row.top1:.2f}", *[""] * (2 * len(metrics) - 1), "", row.source])
    titles = [f"{which} {name}" for name in metrics for which in ("best", "last")]
    columns = ["", "setting", "runs", *titles, f"{unit_of(comparison.runs)} each", ""]
    show_texts(columns, rows, texts=(0, 1, len(columns) - 1))
    _rest(len(comparison.groups), "settings")


def _paired(comparison: Comparison) -> None:
    rows = [
        [f"{formatting.tag(place)} - A", name, str(len(pair.seeds)), *formatting.paired(name, pair)]
        for name in comparison.metrics
        for place, pair in differences(comparison, name)[:MAX_ROWS]
    ]
    if rows:
        print_title("Differences seed by seed, of the last values")
        show_texts(["", "metric", "seeds", "mean", "95 % interval (t)", "95 % interval (bootstrap)"], rows, texts=(0, 1))


def _rest(count: int, what: str) -> None:
    if count > MAX_ROWS:
        typer.echo(f"… and {count - MAX_ROWS} other {what}: --html and --json have all")
