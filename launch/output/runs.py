"""Prints what `tdformer runs` finds: a list, one run, or a comparison."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import typer
from rich.table import Table
from rich.text import Text

from launch.output.tables import print_full_width
from tdformer.rundir.run_directory import how_to_go_on
from tdformer.runs import configs, formatting
from tdformer.runs.comparison import Comparison, outcome, spread
from tdformer.runs.cost import hours_of, unit_of
from tdformer.runs.json_output import without_nan
from tdformer.runs.run import Run
from tdformer.runs.states import MEANING

MAX_ROWS = 40
"""The largest number of rows of a comparison. The report and --json have all rows."""


def print_json(tree: dict[str, Any]) -> None:
    """Print a tree as JSON, with text in place of NaN and infinity."""
    typer.echo(json.dumps(without_nan(tree)))


def show_list(runs: Sequence[Run], metric: str) -> None:
    """Print one line per run."""
    if not runs:
        typer.echo("no run fulfils every --filter")
        return
    columns = ["run", "state", "epoch", "step", f"best {metric}", "last", "images/s", unit_of(runs), "last written"]
    rows = []
    for run in runs:
        last = run.last
        epoch = f"{last.epoch:g}/{run.config.get('training.epochs', '?')}" if last else formatting.NOTHING
        cost = [formatting.speed(run.images_per_s), formatting.hours(hours_of(run))]
        name = _relative_name(run, runs)
        step = str(last.step) if last else formatting.NOTHING
        rows.append([name, run.state, epoch, step, *_best_and_last(run, metric), *cost, formatting.when(run.changed)])
    _print(columns, rows, texts=(0, 1, 8))
    _notes({_relative_name(run, runs): run.notes for run in runs})


def show_one(run: Run, metrics: Sequence[str]) -> None:
    """Print everything about one run."""
    facts = {"run": str(run.path), "state": f"{run.state} ({MEANING[run.state]})"}
    if run.last:
        facts["reached"] = f"epoch {run.last.epoch:g} of {run.config.get('training.epochs', '?')}, step {run.last.step}"
    facts["images/s"] = formatting.speed(run.images_per_s)
    for unit, value in (("GPU hours", run.gpu_hours), ("CPU process hours", run.cpu_process_hours)):
        if value is not None:
            facts[unit] = formatting.hours(value)
    facts |= {f"{which} checkpoint": name for which, name in run.checkpoints.items()}
    if run.mlflow_id:
        facts["MLflow"] = f"run {run.mlflow_id} at {run.config.get('tracking.uri', '?')}"
    _print(None, [[name, value] for name, value in facts.items()], texts=(0, 1))
    own = {key: value for key, value in run.config.items() if value != configs.defaults().get(key)}
    _section("Configuration that is not the default")
    _print(None, [[key, formatting.config_value(value), _default(key)] for key, value in own.items()], texts=(0, 1, 2))
    if run.sessions:
        _section("Sessions")
        columns = ["began", "last seen", "steps", "processes", "device", "host", "Slurm job", "commit", "state"]
        _print(columns, [_session(session) for session in run.sessions], texts=tuple(range(9)))
    if metrics:
        _section("Metrics")
        _print(["metric", "best", "at step", "last", "course"], [_metric(run, name) for name in metrics], texts=(0, 4))
    _notes({run.name: run.notes})
    typer.echo(f"\n{_next_step(run)}")


def show_comparison(comparison: Comparison) -> None:
    """Print the runs side by side, then the settings with mean and standard deviation if a setting has several runs."""
    metrics, names = comparison.metrics, configs.short_names(comparison.shown)
    runs = comparison.runs
    letter = {run: formatting.tag(index) for index, group in enumerate(comparison.groups) for run in group.runs}
    columns = ["", "run", "state", *names.values(), *(f"{which} {name}" for name in metrics for which in ("best", "last")), "images/s"]
    rows = []
    for run in runs[:MAX_ROWS]:
        config = [formatting.config_value(configs.value(run.config, key)) for key in names]
        numbers = [text for name in metrics for text in _best_and_last(run, name)]
        cost = [formatting.speed(run.images_per_s), formatting.hours(hours_of(run))]
        rows.append([letter[run], comparison.names[run], run.state, *config, *numbers, *cost])
    _print([*columns, unit_of(runs)], rows, texts=range(3 + len(names)))
    _rest(len(runs), "runs")
    if any(len(group.runs) > 1 for group in comparison.groups) or comparison.references:
        _section("Settings: mean ± standard deviation over seeds")
        _settings(comparison)
    _notes({comparison.names[run]: run.notes for run in runs})


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
    _print(columns, rows, texts=(0, 1, len(columns) - 1))
    _rest(len(comparison.groups), "settings")


def _best_and_last(run: Run, metric: str) -> tuple[str, str]:
    found = outcome(run, metric)
    if found is None:
        return formatting.NOTHING, formatting.NOTHING
    return formatting.number(metric, found.best.value), formatting.number(metric, found.last.value)


def _default(key: str) -> str:
    return f"default {formatting.config_value(configs.defaults()[key])}" if key in configs.defaults() else ""


def _session(session: Any) -> list[str]:
    job = session.slurm_job or formatting.NOTHING
    times = [formatting.when(session.began), formatting.when(session.seen)]
    commit = (session.commit or formatting.NOTHING)[:10]
    where = [f"{session.first_step} to {session.step}", str(session.world_size), session.device or "CPU", session.host]
    return [*times, *where, job, commit, session.status]


def _metric(run: Run, name: str) -> list[str]:
    found, points = outcome(run, name), run.metrics.series(name)
    if found is None:
        return [name, *[formatting.NOTHING] * 3, ""]
    course = formatting.sparkline([point.value for point in points], 40)
    return [name, formatting.number(name, found.best.value), str(found.best.step), formatting.number(name, found.last.value), course]


def _next_step(run: Run) -> str:
    if run.state == "finished":
        return f"Evaluate it with: tdformer evaluate {run.path} --which best"
    if run.state == "running":
        return "It is running; to end it, interrupt its process: it saves and can go on."
    if run.state == "damaged":
        return "Its configuration cannot be read; restore config.yaml from a checkpoint's folder or a copy."
    if run.state == "queued":
        return "Slurm starts it: squeue shows when."
    return how_to_go_on(run.path, run.sessions[-1].world_size if run.sessions else 1)


def _relative_name(run: Run, runs: Sequence[Run]) -> str:
    """Return the path of a run below the common folder of all runs."""
    depth = min(len(other.path.parts) for other in runs)
    return "/".join(run.path.parts[depth - 1 :])


def _notes(notes: dict[str, list[str]]) -> None:
    for name, texts in notes.items():
        for note in texts:
            typer.echo(f"note: {name}: {note}", err=True)


def _rest(count: int, what: str) -> None:
    if count > MAX_ROWS:
        typer.echo(f"… and {count - MAX_ROWS} other {what}: --html and --json have all")


def _section(title: str) -> None:
    typer.echo(f"\n{title}")


def _print(columns: Sequence[str] | None, rows: Sequence[Sequence[str]], texts: Sequence[int]) -> None:
    """Print a table. texts: the numbers of the columns that are not numeric. Names are printed as they are, not as markup of rich."""
    table = Table(box=None, show_header=columns is not None, padding=(0, 2, 0, 0))
    for index, name in enumerate(columns or rows[0] if rows else ()):
        table.add_column(Text(name), justify="left" if index in texts else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    print_full_width(table)
