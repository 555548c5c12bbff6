"""What `tdformer runs sync` does with several runs, and shows of it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from data_pipelines.errors import UserError
from tdformer.rundir.run_dir import RunDir
from tdformer.tracking.sync import Synced, sync


def sync_all(runs: Sequence[Path], uri: str | None, quiet: bool) -> tuple[list[Synced], dict[Path, str]]:
    """What was sent, and why the others were not: one that fails keeps no other from being sent."""
    done: list[Synced] = []
    problems: dict[Path, str] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("runs  {task.fields[points]} points"))
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=quiet or not sys.stderr.isatty()) as progress:
        bar = progress.add_task("sending", total=len(runs), points=0)
        total = 0

        def told(points: int) -> None:
            nonlocal total
            total += points
            progress.update(bar, points=total)

        for run in runs:
            progress.update(bar, description=run.name)
            try:
                done.append(sync(RunDir(run), uri, told))
            except UserError as error:
                problems[run] = str(error)
            else:
                if not quiet:
                    typer.echo(_sentence(done[-1]))
            progress.advance(bar)
    return done, problems


def _sentence(synced: Synced) -> str:
    what = f"{synced.points} points sent" if synced.points else "nothing was lacking"
    return f"{synced.run}: {what}  (run {synced.run_id} at {synced.uri})"
