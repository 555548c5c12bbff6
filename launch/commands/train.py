"""`tdformer train`: start a run, or continue it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from data_pipelines.errors import UserError
from launch.commands.options import Overrides, Processes, RunDirOption, Target
from launch.exit_codes import EXIT_ERROR, EXIT_STOPPED
from launch.output import streams

if TYPE_CHECKING:
    from tdformer.config import RunConfig


def train(target: Target, overrides: Overrides = None, run_dir: RunDirOption = None, processes: Processes = 1) -> None:
    """Train a run, or continue it. Paths in a configuration are relative to the current folder.

    The command starts its own processes with --processes N. Under torchrun or srun it is started once per GPU.
    Exit codes: 0 the run is finished; 1 the program has a fault; 2 something has to be corrected, and one sentence says what;
    69 another rank died or hangs, and the last valid checkpoint is kept; 75 a signal, a deadline, or data that cannot be read now
    stopped the run, and its state is saved; 128 + n (with --processes) a rank was killed by signal n.
    """
    streams.go_on_without_reader()
    from tdformer.config.yaml_io import load_config
    from tdformer.distributed.launch_environment import must_start
    from tdformer.rundir.creation import config_of

    if target.is_dir():
        target, run_dir = config_of(target), run_dir or target
    _note_on_stages(target, overrides or [])
    if must_start(processes, os.environ):
        raise typer.Exit(_train_in_processes(load_config(target, overrides or []), target, overrides or [], run_dir, processes))

    from tdformer.training.run import run_training

    stopped, summary = run_training(lambda: load_config(target, overrides or []), run_dir)
    if summary:
        typer.echo(summary)
    raise typer.Exit(EXIT_STOPPED if stopped else 0)


def _note_on_stages(target: Path, overrides: list[str]) -> None:
    """Say that a configuration has trainings before it, if the run does not start from weights of any. Ranks of a launcher are silent."""
    from tdformer.config.chain import chain_of
    from tdformer.config.yaml_io import load_config
    from tdformer.distributed.launch_environment import launcher_of

    if launcher_of(os.environ):
        return
    try:
        if load_config(target, overrides).init is not None or len(chain := chain_of(target)) == 1:
            return
    except UserError:  # training says it, and waits for what cannot be read now
        return
    typer.echo(
        f"note: {target} comes after {chain[-2].name} and has no init, so that it starts from random weights here; to train what comes "
        f"before it, too: tdformer recipe {target}",
        err=True,
    )


def _train_in_processes(config: RunConfig, target: Path, overrides: list[str], path: Path | None, processes: int) -> int:
    """Train in child processes, and return their exit code.

    The run directory is chosen here, so that this process can close the MLflow run after its children are killed.
    """
    from launch.local_processes import run_processes
    from tdformer.rundir import creation, run_lock
    from tdformer.rundir.advice import how_to_go_on
    from tdformer.rundir.run_dir import RunDir

    config.training.accumulation(processes)
    run_dir = RunDir(path) if path else creation.create_next(config)
    is_new = not run_dir.config.exists()
    creation.check_fits(run_dir, config)
    run_lock.check_free(run_dir)
    typer.echo(f"starting {processes} processes; run directory {run_dir}")
    code = run_processes(processes, ["train", str(target), *overrides, "--run-dir", str(run_dir)])
    if code in (EXIT_ERROR, EXIT_STOPPED) and is_new:
        creation.discard_if_unused(run_dir)
    if code not in (0, EXIT_ERROR, EXIT_STOPPED):
        from tdformer.tracking import sync

        if not run_lock.is_held(run_dir):  # else another process has taken the run over
            sync.close(run_dir)
        typer.echo(how_to_go_on(run_dir, processes), err=True)
    return code
