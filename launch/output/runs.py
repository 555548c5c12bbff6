"""Prints runs: a list with one line for each, or everything about one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import typer

from launch.output.tables import show_texts
from tdformer.rundir.advice import how_to_go_on
from tdformer.rundir.run_dir import RunDir
from tdformer.runs import flat_config, formatting
from tdformer.runs.comparison import outcome
from tdformer.runs.cost import hours_of, unit_of
from tdformer.runs.json_output import without_nan
from tdformer.runs.run import Run
from tdformer.runs.states import MEANING


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
        rows.append([name, run.state, epoch, step, *best_and_last(run, metric), *cost, formatting.when(run.changed)])
    show_texts(columns, rows, texts=(0, 1, 8))
    print_notes({_relative_name(run, runs): run.notes for run in runs})


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
    show_texts(None, [[name, value] for name, value in facts.items()], texts=(0, 1))
    own = {key: value for key, value in run.config.items() if value != flat_config.defaults().get(key)}
    print_title("Configuration that is not the default")
    show_texts(None, [[key, formatting.config_value(value), _default(key)] for key, value in own.items()], texts=(0, 1, 2))
    if run.sessions:
        print_title("Sessions")
        columns = ["began", "last seen", "steps", "processes", "device", "host", "Slurm job", "commit", "state"]
        show_texts(columns, [_session(session) for session in run.sessions], texts=tuple(range(9)))
    if metrics:
        print_title("Metrics")
        show_texts(["metric", "best", "at step", "last", "course"], [_metric(run, name) for name in metrics], texts=(0, 4))
    print_notes({run.name: run.notes})
    typer.echo(f"\n{_next_step(run)}")


def best_and_last(run: Run, metric: str) -> tuple[str, str]:
    """Return the best and the last value of a metric as text."""
    found = outcome(run, metric)
    if found is None:
        return formatting.NOTHING, formatting.NOTHING
    return formatting.number(metric, found.best.value), formatting.number(metric, found.last.value)


def _default(key: str) -> str:
    return f"default {formatting.config_value(flat_config.defaults()[key])}" if key in flat_config.defaults() else ""


def _session(session: Any) -> list[str]:
    job = session.slurm_job or formatting.NOTHING
    times = [formatting.when(session.began), formatting.when(session.seen)]
    commit = (session.commit or formatting.NOTHING)[:10]
    processes = f"{session.world_size} {session.reduction}" if session.world_size > 1 else "1"
    where = [f"{session.first_step} to {session.step}", processes, session.device or "CPU", session.host]
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
    return how_to_go_on(RunDir(run.path), run.sessions[-1].world_size if run.sessions else 1)


def _relative_name(run: Run, runs: Sequence[Run]) -> str:
    """Return the path of a run below the common folder of all runs."""
    depth = min(len(other.path.parts) for other in runs)
    return "/".join(run.path.parts[depth - 1 :])


def print_notes(notes: dict[str, list[str]]) -> None:
    """Print the notes of each run to stderr, by the name of the run."""
    for name, texts in notes.items():
        for note in texts:
            typer.echo(f"note: {name}: {note}", err=True)


def print_title(title: str) -> None:
    """Print the title of a part of the output, after an empty line."""
    typer.echo(f"\n{title}")
