"""`tdformer runs sync`: send the metrics of runs to MLflow."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from data_pipelines.errors import UnavailableError, UserError
from launch.commands.options import Json

if TYPE_CHECKING:
    from tdformer.tracking.sync import Synced


def sync(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN|FOLDER...", help="Run directories, and folders of runs.")],
    uri: Annotated[
        str | None, typer.Option(metavar="URI", help="An MLflow other than tracking.uri of the runs; all points are sent to it.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Send to MLflow what it lacks of runs that no process trains. Repeating the command sends nothing twice.

    A run sends its metrics itself during training. This command is for a server that could not be reached until the end, for runs that
    were killed, and for runs on a cluster that cannot reach the server.
    """
    from launch.output.runs import print_json
    from tdformer.runs.discovery import find_runs

    done, problems = sync_all(find_runs(runs), uri, quiet=as_json)
    if as_json:
        synced = [{"run": str(each.run), "uri": each.uri, "mlflow_run_id": each.run_id, "points": each.points} for each in done]
        print_json({"synced": synced, "not_synced": [{"run": str(run), "why": str(why)} for run, why in problems.items()]})
    if problems:
        passing = all(isinstance(problem, UnavailableError) for problem in problems.values())
        raise (UnavailableError if passing else UserError)("\n".join(map(str, problems.values())))


def sync_all(runs: Sequence[Path], uri: str | None, quiet: bool) -> tuple[list[Synced], dict[Path, UserError]]:
    """Send every run. Return what was sent, and for each run that failed the reason. One failure does not stop the others."""
    from tdformer.rundir.run_dir import RunDir
    from tdformer.tracking.sync import sync as sync_run

    done: list[Synced] = []
    problems: dict[Path, UserError] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("runs  {task.fields[points]} points"))
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=quiet or not sys.stderr.isatty()) as progress:
        bar = progress.add_task("sending", total=len(runs), points=0)
        total = 0

        def add_points(points: int) -> None:
            nonlocal total
            total += points
            progress.update(bar, points=total)

        for run in runs:
            progress.update(bar, description=run.name)
            try:
                done.append(sync_run(RunDir(run), uri, add_points))
            except UserError as error:
                problems[run] = error
            else:
                if not quiet:
                    typer.echo(_sentence(done[-1]))
            progress.advance(bar)
    return done, problems


def _sentence(synced: Synced) -> str:
    what = f"{synced.points} points sent" if synced.points else "nothing was lacking"
    return f"{synced.run}: {what}  (run {synced.run_id} at {synced.uri})"
