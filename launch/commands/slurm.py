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
    from tdformer.rundir.run_dir import RunDir

    typer.echo(requeue.begin(RunDir(run_dir)))


@slurm_app.command()
def end(run_dir: Path, code: int) -> None:
    """Requeue the job if its run has to continue. CODE is the exit code of the ranks, and of this command."""
    from launch.slurm import requeue
    from tdformer.rundir.run_dir import RunDir

    typer.echo(requeue.end(RunDir(run_dir), code))
    raise typer.Exit(code)
