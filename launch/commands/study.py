"""`tdformer study`: train settings x seeds, and compare the settings seed by seed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data_pipelines.errors import UserError
from launch.commands.options import Json, Processes
from launch.exit_codes import EXIT_STOPPED

if TYPE_CHECKING:
    from tdformer.config.study import StudyConfig, StudyRun


def study(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The YAML file of the study.")],
    processes: Processes = 1,
    report: Annotated[bool, typer.Option("--report", help="Train nothing; show what the finished runs say.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check every setting, show all runs and their states, train nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Train every setting with every seed, one run after the other, and compare the settings seed by seed.

    Runs that are finished are left out, and others go on. So the same command goes on after a kill. The exit code is 75 if a run was
    told to stop.
    """
    from launch.output.runs import print_json
    from launch.output.study import show_runs, show_study
    from tdformer.config.study import load_study
    from tdformer.runs.study import read_study

    defined, configs = load_study(file)
    for config in configs.values():
        config.training.accumulation(processes)
    if dry_run:
        show_runs(read_study(defined), as_json)
        return
    if not report:
        _train_all(defined, processes, quiet=as_json)
    result = read_study(defined)
    if as_json:
        print_json(result.as_dict())
    else:
        show_study(result)


def _train_all(defined: StudyConfig, processes: int, quiet: bool) -> None:
    """Train the runs that are not finished. Raises UserError after a run that failed, and Exit after one that was told to stop."""
    from tdformer.runs import reader

    runs = list(defined.runs())
    for number, run in enumerate(runs, start=1):
        if run.path.is_dir() and reader.read(run.path).state == "finished":
            continue
        typer.echo(f"run {number} of {len(runs)}: {run.setting}, seed {run.seed}, in {run.path}", err=quiet)
        code = _train(defined, run, processes, quiet)
        if code == EXIT_STOPPED:
            raise typer.Exit(EXIT_STOPPED)
        if code:
            raise UserError(f"run {run.path} ended with exit code {code}; mend what it said, and the same command goes on.")


def _train(defined: StudyConfig, run: StudyRun, processes: int, quiet: bool) -> int:
    """Train one run in a process of its own, and return its exit code. Ctrl-C reaches that process too, which saves."""
    start = [str(run.path)] if (run.path / "config.yaml").exists() else [str(defined.base), *run.overrides, "--run-dir", str(run.path)]
    command = [sys.executable, "-m", "launch", "train", *start, "--processes", str(processes)]
    with subprocess.Popen(command, stdout=sys.stderr if quiet else None, env=os.environ) as child:
        while True:
            try:
                return child.wait()
            except KeyboardInterrupt:
                continue
