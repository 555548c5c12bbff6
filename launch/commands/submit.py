"""`tdformer submit`: run as a Slurm job that returns until the run is finished."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.commands.options import Json, Overrides, RunDirOption, Target

if TYPE_CHECKING:
    from launch.slurm.submit import Submitted


def submit(
    target: Target,
    overrides: Overrides = None,
    nodes: Annotated[int, typer.Option(min=1, help="The number of nodes.")] = 1,
    gpus_per_node: Annotated[int, typer.Option(min=0, help="The number of GPUs per node, with one process for each; 0 runs on CPUs.")] = 8,
    processes_per_node: Annotated[int | None, typer.Option(min=1, help="The number of processes per node, for a run on CPUs.")] = None,
    time: Annotated[str | None, typer.Option(help="The time limit of one job, such as 24:00:00; a longer run is requeued.")] = None,
    partition: Annotated[str | None, typer.Option(help="The partition, as in sbatch --partition.")] = None,
    account: Annotated[str | None, typer.Option(help="The account that is charged, as in sbatch --account.")] = None,
    qos: Annotated[str | None, typer.Option(help="The quality of service, as in sbatch --qos.")] = None,
    cluster: Annotated[
        Path | None,
        typer.Option(help="The YAML file of the cluster, with modules, container and environment (see configs/clusters)."),
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=[VALUE,...]", help="Submit one run per value as a job array; can be repeated."),
    ] = None,
    at_once: Annotated[int | None, typer.Option(min=1, help="The number of jobs of an array that run at the same time.")] = None,
    run_dir: RunDirOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, print the script, submit nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Submit a run to Slurm, or continue one. The job is requeued until the run is finished.

    The job saves its state and is requeued when its time is over, when it is preempted, and when a process or a node fails. It ends
    when the run is finished, when something has to be corrected, and when it makes no progress. Code and configuration are
    copied at submission.
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
        for line in (*_runs_of_sweep(submitted), "dry run: nothing was written, and nothing was submitted"):
            typer.echo(line, err=True)
    else:
        _show(submitted)


def _described(submitted: Submitted) -> dict[str, object]:
    job = submitted.job
    paths = {"runs": [str(run) for run in job.runs], "script": str(job.script), "log": str(submitted.log)}
    size = {"nodes": job.nodes, "processes_per_node": job.processes_per_node, "gpus_per_node": job.gpus_per_node}
    sweep = {"sweep": [list(change) for change in submitted.changes]} if job.is_array else {}
    return {"job": submitted.number, "submitted": submitted.number is not None, **size, **paths, **sweep}


def _runs_of_sweep(submitted: Submitted) -> list[str]:
    """Say which run has which values."""
    job = submitted.job
    return [f"{run}: {' '.join(change)}" for run, change in zip(job.runs, submitted.changes, strict=True)] if job.is_array else []


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
    typer.echo("\n".join([*(f"{name:<14} {value}" for name, value in rows.items()), *_runs_of_sweep(submitted)]))
