"""`tdformer runs`: what was trained, from the run directories alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from data_pipelines.errors import UserError
from launch.options import Json, plain_typer

if TYPE_CHECKING:
    from tdformer.runs.reading import Run

runs_app = plain_typer(help="List, show and compare runs. Reads run directories: needs no server, and no GPU.")

RUNS = Path("runs")
Metric = Annotated[str, typer.Option(help="Such as val/top1, val/loss, train/loss.")]
Metrics = Annotated[
    list[str] | None,
    typer.Option("--metric", help="The first one ranks; may be given several times. Default: val/top1, val/top1_ema if any, val/loss."),
]
Filters = Annotated[
    list[str] | None,
    typer.Option("--filter", metavar="KEY=VALUE", help="Only runs with this, such as state=failed; may be given several times."),
]
Compared = Annotated[
    list[Path] | None, typer.Argument(metavar="[RUN|FOLDER]...", help="Run directories, and folders of runs. Default: runs")
]


@runs_app.command("list")
def list_runs(
    folder: Annotated[Path, typer.Argument(help="Of runs; each may be a folder of runs once more, as a sweep is.")] = RUNS,
    metric: Metric = "val/top1",
    sort: Annotated[Literal["newest", "best", "name", "hours"], typer.Option(help="best: by the metric.")] = "newest",
    filters: Filters = None,
    limit: Annotated[int | None, typer.Option(min=1, help="So many at most.")] = None,
    as_json: Json = False,
) -> None:
    """All runs: their state, how far they are, the metric, what they cost. The newest first."""
    from launch.runs_output import show_list
    from tdformer.runs import comparing, reading, rows
    from tdformer.runs.figures import hours_of

    runs = reading.read_all(reading.find([folder]), [metric], reading.FOR_A_LIST)
    comparing.check_metrics(runs, [metric] if metric != comparing.TOP1 else [])
    runs = rows.filtered(runs, filters or [])
    if sort == "best":
        runs = comparing.best_first(runs, metric)
    elif sort == "name":
        runs.sort(key=lambda run: str(run.path))
    else:
        runs.sort(key=lambda run: -run.changed if sort == "newest" else -(hours_of(run) or 0))
    runs = runs[:limit]
    if as_json:
        _print_json({"runs": [rows.as_row(run, [metric]) for run in runs]})
    else:
        show_list(runs, metric)


@runs_app.command("show")
def show_run(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    as_json: Json = False,
) -> None:
    """One run: its configuration where it is not the default, sessions, metrics, checkpoints, and how to go on."""
    from launch.runs_output import show_one
    from tdformer.runs import reading

    if not reading.is_run(run):
        raise UserError(
            f"{run} is no run directory: it has neither config.yaml nor metrics.jsonl; `tdformer runs list` names those there are."
        )
    found = reading.read(run)
    metrics = found.metrics.names()
    found = reading.read(run, metrics, samples=reading.FOR_A_CURVE)  # once more, for the best of each metric
    if as_json:
        _print_json(_one_as_tree(found, metrics))
    else:
        show_one(found, metrics)


@runs_app.command()
def compare(
    runs: Compared = None,
    metrics: Metrics = None,
    filters: Filters = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a report: one HTML file with tables and curves.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write it over a file that is no such report.")] = False,
    as_json: Json = False,
) -> None:
    """Runs side by side: what differs, the metrics, seeds as mean ± standard deviation, speed and cost, and the paper's numbers."""
    from launch.runs_output import show_comparison
    from tdformer.runs import comparing, reading, rows

    if html:
        from tdformer.runs import html as report

        report.check_free(html, force)
    found = rows.filtered(reading.read_all(reading.find(runs or [RUNS]), metrics or []), filters or [])
    if not found:
        raise UserError("no run fulfils every --filter; `tdformer runs list` shows those there are.")
    comparison = comparing.compare(found, metrics or [])
    if html:
        report.write(html, comparison, force)
    if as_json:
        _print_json(rows.as_tree(comparison))
    else:
        show_comparison(comparison)
        if html:
            typer.echo(f"report            {html}")


def _one_as_tree(run: Run, metrics: list[str]) -> dict[str, Any]:
    from dataclasses import asdict

    from tdformer.runs import configs, rows

    own = {key: value for key, value in run.config.items() if value != configs.defaults().get(key)}
    begun = [asdict(session) for session in run.sessions]
    return {
        **rows.as_row(run, metrics),
        **{"mlflow_run_id": run.mlflow_id, "checkpoints": run.checkpoints, "sessions": begun, "not_default": own, "config": run.config},
    }


@runs_app.command()
def sync(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN|FOLDER...", help="Run directories, and folders of runs.")],
    uri: Annotated[
        str | None, typer.Option(metavar="URI", help="Another MLflow than the run's own tracking.uri; it gets all points.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Send to MLflow what it lacks of runs that no process trains. May be repeated: nothing is sent twice.

    A run sends by itself while it is trained; this is for what an unreachable server did not take before the end, for runs that were
    killed, and for runs from a cluster without a way to the server.
    """
    from launch.runs_sync import sync_all
    from tdformer.runs import reading

    done, problems = sync_all(reading.find(runs), uri, quiet=as_json)
    if as_json:
        synced = [{"run": str(each.run), "uri": each.uri, "mlflow_run_id": each.run_id, "points": each.points} for each in done]
        _print_json({"synced": synced, "not_synced": [{"run": str(run), "why": why} for run, why in problems.items()]})
    if problems:
        raise UserError("\n".join(problems.values()))


def _print_json(tree: dict[str, Any]) -> None:
    from tdformer.runs.rows import without_nan

    typer.echo(json.dumps(without_nan(tree)))
