"""What `tdformer runs` prints for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tdformer.rundir.advice import how_to_go_on
from tdformer.rundir.run_dir import RunDir
from tdformer.runs import configs, wording
from tdformer.runs.comparing import Comparison, outcome, spread
from tdformer.runs.figures import hours_of, unit_of
from tdformer.runs.reading import Run
from tdformer.runs.states import MEANING

AT_MOST = 40
"""Rows of a comparison; the report and --json have all."""


def show_list(runs: Sequence[Run], metric: str) -> None:
    if not runs:
        typer.echo("no run fulfils every --filter")
        return
    columns = ["run", "state", "epoch", "step", f"best {metric}", "last", "images/s", unit_of(runs), "last written"]
    rows = []
    for run in runs:
        last = run.last
        epoch = f"{last.epoch:g}/{run.config.get('training.epochs', '?')}" if last else wording.NOTHING
        cost = [wording.speed(run.images_per_s), wording.hours(hours_of(run))]
        name = _under(run, runs)
        step = str(last.step) if last else wording.NOTHING
        rows.append([name, run.state, epoch, step, *_best_and_last(run, metric), *cost, wording.when(run.changed)])
    _print(columns, rows, texts=(0, 1, 8))
    _notes({_under(run, runs): run.notes for run in runs})


def show_one(run: Run, metrics: Sequence[str]) -> None:
    facts = {"run": str(run.path), "state": f"{run.state} ({MEANING[run.state]})"}
    if run.last:
        facts["reached"] = f"epoch {run.last.epoch:g} of {run.config.get('training.epochs', '?')}, step {run.last.step}"
    facts["images/s"] = wording.speed(run.images_per_s)
    for unit, value in (("GPU hours", run.gpu_hours), ("CPU process hours", run.cpu_process_hours)):
        if value is not None:
            facts[unit] = wording.hours(value)
    facts |= {f"{which} checkpoint": name for which, name in run.checkpoints.items()}
    if run.mlflow_id:
        facts["MLflow"] = f"run {run.mlflow_id} at {run.config.get('tracking.uri', '?')}"
    _print(None, [[name, value] for name, value in facts.items()], texts=(0, 1))
    own = {key: value for key, value in run.config.items() if value != configs.defaults().get(key)}
    _section("Configuration that is not the default")
    usual = ((key, configs.defaults().get(key)) for key in own)
    told = [f"default {wording.config_value(value)}" if key in configs.defaults() else "" for key, value in usual]
    _print(None, [[key, wording.config_value(value), text] for (key, value), text in zip(own.items(), told, strict=True)], texts=(0, 1, 2))
    if run.sessions:
        _section("Sessions")
        columns = ["began", "last seen", "steps", "processes", "device", "host", "Slurm job", "commit", "state"]
        _print(columns, [_session(session) for session in run.sessions], texts=tuple(range(9)))
    if metrics:
        _section("Metrics")
        _print(["metric", "best", "at step", "last", "course"], [_metric(run, name) for name in metrics], texts=(0, 4))
    _notes({run.name: run.notes})
    typer.echo(f"\n{_next(run)}")


def show_comparison(comparison: Comparison) -> None:
    metrics, names = comparison.metrics, configs.short_names(comparison.shown)
    runs = comparison.runs
    letter = {run: wording.tag(index) for index, group in enumerate(comparison.groups) for run in group.runs}
    columns = ["", "run", "state", *names.values(), *(f"{which} {name}" for name in metrics for which in ("best", "last")), "images/s"]
    rows = []
    for run in runs[:AT_MOST]:
        config = [wording.config_value(configs.value(run.config, key)) for key in names]
        numbers = [text for name in metrics for text in _best_and_last(run, name)]
        cost = [wording.speed(run.images_per_s), wording.hours(hours_of(run))]
        rows.append([letter[run], comparison.names[run], run.state, *config, *numbers, *cost])
    _print([*columns, unit_of(runs)], rows, texts=range(3 + len(names)))
    _rest(len(runs), "runs")
    if any(len(group.runs) > 1 for group in comparison.groups) or comparison.references:
        _section("Settings: mean ± standard deviation over seeds")
        _settings(comparison)
    _notes({comparison.names[run]: run.notes for run in runs})


def _settings(comparison: Comparison) -> None:
    metrics, rows = comparison.metrics, []
    for index, group in enumerate(comparison.groups[:AT_MOST]):
        measured = [wording.spread_of(name, group.spread(name, which)) for name in metrics for which in ("best", "last")]
        cost = spread([spent for run in group.runs if (spent := hours_of(run)) is not None])
        name = wording.setting(group.setting) or group.runs[0].name
        remark = "; ".join(group.notes)
        rows.append([wording.tag(index), name, str(len(group.runs)), *measured, wording.hours(cost.mean if cost else None), remark])
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
    return (wording.number(metric, found.best.value), wording.number(metric, found.last.value)) if found else (wording.NOTHING,) * 2


def _session(session: Any) -> list[str]:
    job = session.slurm_job or wording.NOTHING
    times = [wording.when(session.began), wording.when(session.seen)]
    commit = (session.commit or wording.NOTHING)[:10]
    where = [f"{session.first_step} to {session.step}", str(session.world_size), session.device or "CPU", session.host]
    return [*times, *where, job, commit, session.status]


def _metric(run: Run, name: str) -> list[str]:
    found, points = outcome(run, name), run.metrics.series(name)
    if found is None:
        return [name, *[wording.NOTHING] * 3, ""]
    course = wording.sparkline([point.value for point in points], 40)
    return [name, wording.number(name, found.best.value), str(found.best.step), wording.number(name, found.last.value), course]


def _next(run: Run) -> str:
    if run.state == "finished":
        return f"Evaluate it with: tdformer evaluate {run.path} --which best"
    if run.state == "running":
        return "It is running; to end it, interrupt its process: it saves and can go on."
    if run.state == "damaged":
        return "Its configuration cannot be read; restore config.yaml from a checkpoint's folder or a copy."
    if run.state == "queued":
        return "Slurm starts it: squeue shows when."
    return how_to_go_on(RunDir(run.path), run.sessions[-1].world_size if run.sessions else 1)


def _under(run: Run, runs: Sequence[Run]) -> str:
    """The path below the folder of all."""
    depth = min(len(other.path.parts) for other in runs)
    return "/".join(run.path.parts[depth - 1 :])


def _notes(notes: dict[str, list[str]]) -> None:
    for name, told in notes.items():
        for note in told:
            typer.echo(f"note: {name}: {note}", err=True)


def _rest(count: int, what: str) -> None:
    if count > AT_MOST:
        typer.echo(f"… and {count - AT_MOST} other {what}: --html and --json have all")


def _section(title: str) -> None:
    typer.echo(f"\n{title}")


def _print(columns: Sequence[str] | None, rows: Sequence[Sequence[str]], texts: Sequence[int]) -> None:
    """texts: columns that are not numbers. Names are printed as they are, never read as rich's markup."""
    table = Table(box=None, show_header=columns is not None, padding=(0, 2, 0, 0))
    for index, name in enumerate(columns or rows[0] if rows else ()):
        table.add_column(Text(name), justify="left" if index in texts else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    needed = Console(width=1000).measure(table).maximum
    Console(width=max(needed, Console().width), highlight=False).print(table)
