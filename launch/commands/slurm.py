"""`tdformer slurm`, hidden from the help: the script of a job calls it before and after its ranks."""

from __future__ import annotations

from pathlib import Path

import typer

from launch.commands.options import plain_typer

slurm_app = plain_typer(help="Commands that the script of a job calls.")


@slurm_app.command()
def begin(run_dir: Path) -> None:
    """Record this start of the job. Exit with code 2 if the job restarts again and again without progress."""
    from launch.slurm import requeue

    typer.echo(requeue.begin(run_dir))


@slurm_app.command()
def end(run_dir: Path, code: int) -> None:
    """Requeue the job if its run has to continue. CODE is the exit code of the ranks, and of this command."""
    from launch.slurm import requeue

    typer.echo(requeue.end(run_dir, code))
    raise typer.Exit(code)
