"""`tdformer submit`, and what a job's script calls at its beginning and its end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.options import Json, Overrides, Target, plain_typer

if TYPE_CHECKING:
    from launch.slurm.submit import Submitted

slurm_app = plain_typer(help="What a job's script calls.")


def submit(
    target: Target,
    overrides: Overrides = None,
    nodes: Annotated[int, typer.Option(min=1)] = 1,
    gpus_per_node: Annotated[int, typer.Option(min=0, help="One process each; 0 for a run on CPUs.")] = 8,
    processes_per_node: Annotated[int | None, typer.Option(min=1, help="Of a run on CPUs.")] = None,
    time: Annotated[str | None, typer.Option(help="Of one job, as Slurm writes it: 24:00:00. A run that needs longer comes back.")] = None,
    partition: Annotated[str | None, typer.Option()] = None,
    account: Annotated[str | None, typer.Option()] = None,
    qos: Annotated[str | None, typer.Option()] = None,
    cluster: Annotated[
        Path | None, typer.Option(help="A YAML file of what this cluster wants: modules, container, environment, … (see configs/clusters).")
    ] = None,
    sweep: Annotated[
        list[str] | None, typer.Option(metavar="KEY=[VALUE,...]", help="A run for each value, as a job array; given again: for each pair.")
    ] = None,
    at_once: Annotated[int | None, typer.Option(min=1, help="Of an array, so many jobs at a time.")] = None,
    run_dir: Annotated[Path | None, typer.Option(help="Where the run lives; continued if it exists. Default: a new folder.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, print the script, submit nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Submit a run to Slurm, or go on with one. It is put back into the queue until it is finished.

    The job saves and comes back when its time is over, when it is preempted or requeued, and when a process or a node fails;
    it ends when the run is finished, when there is something to mend, and when it makes no progress. Code and configuration
    are those of the moment of submission.
    """
    from launch.slurm.cluster_config import load_cluster, with_options
    from launch.slurm.submit import Size
    from launch.slurm.submit import submit as submit_job

    processes = processes_per_node or gpus_per_node or 1
    if gpus_per_node and processes != gpus_per_node:
        raise typer.BadParameter("one process per GPU: --processes-per-node is for --gpus-per-node 0.")
    size = Size(nodes, processes, gpus_per_node, at_once)
    wanted = with_options(load_cluster(cluster), {"time": time, "partition": partition, "account": account, "qos": qos})
    submitted = submit_job(target, overrides or [], sweep or [], run_dir, size, wanted, dry_run)
    if as_json:
        typer.echo(json.dumps(_described(submitted)))
    elif dry_run:
        typer.echo(submitted.text, nl=False)
    else:
        _show(submitted)


def _described(submitted: Submitted) -> dict[str, object]:
    job = submitted.job
    paths = {"runs": [str(run) for run in job.runs], "script": str(job.script), "log": str(submitted.log)}
    size = {"nodes": job.nodes, "processes_per_node": job.processes_per_node, "gpus_per_node": job.gpus_per_node}
    return {"job": submitted.number, "submitted": submitted.number is not None, **size, **paths}


def _show(submitted: Submitted) -> None:
    job, number = submitted.job, submitted.number
    what = f"{job.gpus_per_node} GPUs" if job.gpus_per_node else f"{job.processes_per_node} processes on CPUs"
    rows = {
        "job": f"{number}, {job.nodes} nodes x {what}" + (f", an array of {len(job.runs)}" if job.is_array else ""),
        "run directory": f"{job.runs[0]}" + (f" to {job.runs[-1].name}" if job.is_array else ""),
        "script": job.script,
        "log": submitted.log,
        "follow": f"squeue --jobs {number}; tail -F {submitted.log}",
        "stop": f"scancel {number}   (it saves; go on with: tdformer submit {job.runs[0]})",
    }
    typer.echo("\n".join(f"{name:<14} {value}" for name, value in rows.items()))


@slurm_app.command()
def begin(run_dir: Path) -> None:
    """Write down this start of the job, unless starts lead nowhere (exit code 2)."""
    from launch.slurm import requeue
    from tdformer.rundir.run_dir import RunDir

    typer.echo(requeue.begin(RunDir(run_dir)))


@slurm_app.command()
def end(run_dir: Path, code: int) -> None:
    """Put the job back into the queue, if its run is to go on. Exits with CODE."""
    from launch.slurm import requeue
    from tdformer.rundir.run_dir import RunDir

    typer.echo(requeue.end(RunDir(run_dir), code))
    raise typer.Exit(code)
