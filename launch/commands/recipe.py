"""`tdformer recipe`: train the stages of a published result one after the other."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data_pipelines.errors import UserError
from launch.commands.options import Json, Overrides, Processes
from launch.exit_codes import EXIT_STOPPED
from launch.local_processes import run_command

if TYPE_CHECKING:
    from launch.slurm.cluster_config import ClusterConfig
    from launch.slurm.submit import Size
    from tdformer.runs.chain import Chain, Stage


def recipe(
    target: Annotated[
        Path,
        typer.Argument(
            metavar="CONFIG|FOLDER",
            help="The last stage: a YAML file, or a name from `tdformer configs`. Its key `after` names the one before. Or the folder of "
            "a recipe that was begun, which goes on.",
        ),
    ],
    overrides: Overrides = None,
    processes: Processes = 1,
    first: Annotated[
        str | None,
        typer.Option(
            metavar="STAGE", help="Begin with this stage, from its own `init`, such as published weights.", show_default="the first one"
        ),
    ] = None,
    folder: Annotated[Path | None, typer.Option(help="The folder of the stages' runs.", show_default="NAME-recipe in `output`")] = None,
    submit: Annotated[bool, typer.Option("--submit", help="Submit all stages as Slurm jobs that wait for each other.")] = False,
    nodes: Annotated[int | None, typer.Option(min=1, help="With --submit: the number of nodes of each job.", show_default="1")] = None,
    gpus_per_node: Annotated[
        int | None, typer.Option(min=0, help="With --submit: GPUs per node, with one process for each; 0 for CPUs.", show_default="8")
    ] = None,
    time: Annotated[str | None, typer.Option(help="With --submit: the time limit of one job, such as 24:00:00.")] = None,
    cluster: Annotated[Path | None, typer.Option(help="With --submit: the YAML file of the cluster (see configs/clusters).")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check every stage, show them and their states, train nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Train the stages of a result one after the other.

    Each stage starts from the best weights of the one before. Stages that are finished are left out, and one that was interrupted goes on.
    So the same command goes on after a kill. Overrides change every stage; init=… changes the first one alone. The exit code is 75 if a
    stage was told to stop.
    """
    from launch.output.tables import show_notes
    from launch.slurm.cluster_config import load_cluster, with_options
    from launch.slurm.submit import Size
    from launch.slurm.submit import check as check_job
    from tdformer.runs.chain import make_chain

    given = {"--nodes": nodes, "--gpus-per-node": gpus_per_node, "--time": time, "--cluster": cluster}
    if not submit and (useless := [name for name, value in given.items() if value is not None]):
        raise UserError(f"{useless[0]} is for --submit; to train here, give --processes alone.")
    if submit and processes > 1 and gpus_per_node != 0:
        raise UserError("--processes is for training here, and for CPUs (--gpus-per-node 0); a job has one process for each of its GPUs.")
    chain = make_chain(target, overrides or [], first, folder)
    gpus = 8 if gpus_per_node is None else gpus_per_node
    size, wanted = Size(nodes or 1, gpus or processes, gpus), with_options(load_cluster(cluster), {"time": time})
    for stage in chain.stages:
        if submit:
            check_job(stage.config, size, wanted)
        else:
            stage.config.training.accumulation(processes)
    chain.check()
    if dry_run:
        show_notes(chain.notes())
    elif submit:
        _submit(chain, size, wanted, quiet=as_json)
    else:
        _train(chain, processes, quiet=as_json)
    _show(chain, as_json)


def _train(chain: Chain, processes: int, quiet: bool) -> None:
    """Train the stages that are not finished. Raises UserError after one that failed, and Exit after one that was told to stop."""
    chain.claim()
    for number, stage in enumerate(chain.stages, start=1):
        state = stage.state
        if state == "finished":
            continue
        if state == "running":
            raise UserError(f"another process trains {stage.run_dir}; wait for its end, then give the same command again.")
        typer.echo(f"stage {number} of {len(chain.stages)}: {stage.name}, in {stage.run_dir}", err=quiet)
        run_dir = ["--run-dir", str(stage.run_dir), "--processes", str(processes)]
        code = run_command(["train", str(stage.file), *stage.overrides, *run_dir], sys.stderr if quiet else None)
        if code == EXIT_STOPPED:
            of_processes = f" --processes {processes}" if processes > 1 else ""
            typer.echo(f"the recipe was stopped in stage {stage.name}; go on with: tdformer recipe {chain.folder}{of_processes}", err=True)
            raise typer.Exit(EXIT_STOPPED)
        if code:
            raise UserError(f"stage {stage.name} ended with exit code {code}; mend what it said, and the same command goes on.")


def _submit(chain: Chain, size: Size, cluster: ClusterConfig, quiet: bool) -> None:
    """Submit the stages that are neither finished nor in the queue. Each job waits for the one before."""
    from launch.slurm import scheduler

    scheduler.check_installed()
    chain.claim()
    before: str | None = None
    for stage in chain.stages:
        if stage.state == "finished":
            continue
        before, what = _job_of(stage, size, cluster, before)
        typer.echo(f"{stage.name}: {what}", err=quiet)


def _job_of(stage: Stage, size: Size, cluster: ClusterConfig, before: str | None) -> tuple[str, str]:
    """Return the job of a stage, which is submitted unless it is in the queue, and a sentence about it."""
    from launch.slurm import job_record, scheduler
    from launch.slurm.submit import ENDED
    from launch.slurm.submit import submit as submit_job

    if jobs := [job for job in job_record.jobs_of(stage.run_dir) if scheduler.state(job) not in ENDED]:
        return jobs[-1], f"has job {jobs[-1]}"
    submitted = submit_job(stage.file, stage.overrides, [], stage.run_dir.path, size, cluster, dry_run=False, after=before)
    assert submitted.number is not None
    return submitted.number, f"job {submitted.number}" + (f", after job {before}" if before else "")


def _show(chain: Chain, as_json: bool) -> None:
    from launch.output.tables import show_rows
    from tdformer.runs.chain import described

    rows = [
        {
            **described(stage.run_dir.path),
            "epochs": stage.config.training.epochs,
            "starts_from": str(stage.config.init or "random weights"),
        }
        for stage in chain.stages
    ]
    show_rows(rows, as_json, "stages")
