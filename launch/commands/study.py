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
    from launch.slurm.cluster_config import ClusterConfig
    from launch.slurm.submit import Size
    from tdformer.config.study import StudyConfig, StudyRun


def study(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The YAML file of the study.")],
    processes: Processes = 1,
    slurm: Annotated[bool, typer.Option("--slurm", help="Submit each run as a Slurm job, in place of training here.")] = False,
    nodes: Annotated[int, typer.Option(min=1, help="With --slurm: the number of nodes of each job.")] = 1,
    gpus_per_node: Annotated[int, typer.Option(min=0, help="With --slurm: GPUs per node, with one process for each; 0 for CPUs.")] = 8,
    time: Annotated[str | None, typer.Option(help="With --slurm: the time limit of one job, such as 24:00:00.")] = None,
    cluster: Annotated[Path | None, typer.Option(help="With --slurm: the YAML file of the cluster (see configs/clusters).")] = None,
    report: Annotated[bool, typer.Option("--report", help="Train nothing; show what the finished runs say.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check every setting, show all runs and their states, train nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Train every setting with every seed, one run after the other or as Slurm jobs, and compare the settings seed by seed.

    Runs that are finished are left out, and others go on. So the same command goes on after a kill. The exit code is 75 if a run was
    told to stop.
    """
    from launch.output.runs import print_json
    from launch.output.study import show_runs, show_study
    from launch.slurm.cluster_config import load_cluster, with_options
    from launch.slurm.submit import Size
    from tdformer.config.study import load_study
    from tdformer.runs.study import read_study

    defined, configs = load_study(file)
    size = Size(nodes, gpus_per_node or processes, gpus_per_node)
    for config in configs.values():
        config.training.accumulation(nodes * size.processes_per_node if slurm else processes)
    if dry_run:
        show_runs(read_study(defined), as_json)
        return
    if slurm and not report:
        _submit_all(defined, size, with_options(load_cluster(cluster), {"time": time}))
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


def _submit_all(defined: StudyConfig, size: Size, cluster: ClusterConfig) -> None:
    """Submit the runs that are not finished and have no job. Raises UserError if Slurm refuses one; those before it stay submitted."""
    from launch.slurm import job_record, scheduler
    from launch.slurm.submit import ENDED, submit
    from tdformer.rundir.run_dir import RunDir
    from tdformer.runs import reader

    scheduler.check_installed()
    for run in defined.runs():
        there = run.path.is_dir()
        if there and reader.read(run.path).state == "finished":
            continue
        if there and (jobs := [job for job in job_record.jobs_of(RunDir(run.path)) if scheduler.state(job) not in ENDED]):
            typer.echo(f"{run.path} has job {jobs[0]}")
            continue
        target, overrides = (run.path, []) if there else (defined.base, list(run.overrides))
        submitted = submit(target, overrides, [], run.path, size, cluster, dry_run=False)
        typer.echo(f"{run.path}: job {submitted.number}")


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
