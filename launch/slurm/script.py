"""Renders a job as a script for sbatch. Options and settings are written here, the rest is the end of launch/train.sbatch."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.slurm.cluster_config import ClusterConfig, ContainerConfig

TEMPLATE = Path(__file__).parent.parent / "train.sbatch"
COMMON_PART = "# --- the job"
"""The line in TEMPLATE from which on every script is the same."""


@dataclass(frozen=True)
class Job:
    """A job with one run, or an array of several runs. All paths are absolute."""

    name: str
    runs: Sequence[Path]
    script: Path
    """The path of the script. Logs are written beside it."""
    folder: Path
    """The folder in which the command was given. Paths of the configuration are relative to it."""
    python: str
    """The Python interpreter of the submission."""
    nodes: int
    processes_per_node: int
    gpus_per_node: int
    at_once: int | None = None
    """The largest number of jobs of an array that run at the same time."""

    @property
    def is_array(self) -> bool:
        return len(self.runs) > 1

    @property
    def log(self) -> Path:
        """The path of the log, with the placeholders of Slurm."""
        return self.script.parent / ("%A_%a.out" if self.is_array else "%j.out")

    @property
    def world_size(self) -> int:
        return self.nodes * self.processes_per_node


def render(job: Job, cluster: ClusterConfig) -> str:
    """Return the script as text that people can read and edit."""
    options = "".join(f"#SBATCH {option}\n" for option in _options(job, cluster))
    settings = "\n".join(_settings(job, cluster))
    return f"#!/usr/bin/env bash\n# {_how_to(job)}\n{options}\n{settings}\n\n{COMMON_PART}{_common_part()}"


def _how_to(job: Job) -> str:
    what = f"{len(job.runs)} runs, an array" if job.is_array else "Continues its run"
    return f"{what}; written by tdformer submit. May be edited and submitted again: sbatch {shlex.quote(str(job.script))}"


def _options(job: Job, cluster: ClusterConfig) -> list[str]:
    torchrun = cluster.launcher == "torchrun"
    tasks, width = (1, job.processes_per_node) if torchrun else (job.processes_per_node, 1)
    cpus = cluster.cpus_per_process and cluster.cpus_per_process * width
    given = {
        "job-name": job.name,
        "array": job.is_array and f"0-{len(job.runs) - 1}" + (f"%{job.at_once}" if job.at_once else ""),
        "nodes": job.nodes,
        "ntasks-per-node": tasks,
        "gpus-per-node": job.gpus_per_node,
        "cpus-per-task": cpus,
        "mem": cluster.memory,
        "time": cluster.time,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "signal": f"{cluster.warning_signal}@{cluster.warning_s}",
        "open-mode": "append",
        "chdir": shlex.quote(str(job.folder)),
        "output": shlex.quote(str(job.log)),
    }
    return [f"--{name}={value}" for name, value in given.items() if value] + ["--requeue", *cluster.sbatch]


def _settings(job: Job, cluster: ClusterConfig) -> list[str]:
    runs, run = [shlex.quote(str(path)) for path in job.runs], shlex.quote(str(job.runs[0]))
    lines = [f"RUNS=({' '.join(runs)})", "RUN=${RUNS[$SLURM_ARRAY_TASK_ID]}"] if job.is_array else [f"RUN={run}"]
    lines += ["CONFIG=$RUN", f"PYTHON={shlex.quote(job.python)}"]
    lines += [f"export TDFORMER_MAX_RESTARTS={cluster.max_restarts} TDFORMER_MAX_FRUITLESS={cluster.max_fruitless}"]
    lines += [f"export OMP_NUM_THREADS={cluster.cpus_per_process}"] if cluster.cpus_per_process else []
    lines += [f"export {name}={shlex.quote(value)}" for name, value in cluster.environment.items()]
    lines += [f"module load {shlex.quote(name)}" for name in cluster.modules] + list(cluster.setup)
    lines += ["# The code as it was when the job was submitted, before any that modules or the lines above have put on the path."]
    lines += ["export PYTHONPATH=$RUN/code${PYTHONPATH:+:$PYTHONPATH} PYTHONSAFEPATH=1"]
    cpus = ['--cpus-per-task="$SLURM_CPUS_PER_TASK"'] if cluster.cpus_per_process else []
    lines += [f"SRUN=({' '.join(['srun', *cpus, *_in_container(job, cluster.container, 'pyxis')])})"]
    python = cluster.container.python if cluster.container else '"$PYTHON"'
    lines += [f"RANK=({' '.join([*_in_container(job, cluster.container, 'apptainer'), *_rank(job, cluster, python)])})"]
    return lines


def _rank(job: Job, cluster: ClusterConfig, python: str) -> list[str]:
    """Return the command that srun starts. torchrun passes signals on, and leaves time to save after them."""
    if cluster.launcher == "srun":
        return [python, "-m", "launch"]
    return [
        *(python, "-m", "torch.distributed.run", f"--nnodes={job.nodes}", f"--nproc-per-node={job.processes_per_node}"),
        *("--rdzv-backend=c10d", '--rdzv-id="$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}"'),
        '--rdzv-endpoint="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1):$((20000 + SLURM_JOB_ID % 20000))"',
        *("--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGUSR1,SIGUSR2", "--shutdown-timeout=1800", "-m", "launch"),
    ]


def _in_container(job: Job, container: ContainerConfig | None, runtime: str) -> list[str]:
    if container is None or container.runtime != runtime:
        return []
    image, mounts = shlex.quote(container.image), [*(f"{path}:{path}" for path in (job.folder, *job.runs)), *container.mounts]
    if runtime == "pyxis":
        return [f"--container-image={image}", f"--container-mounts={shlex.quote(','.join(mounts))}", "--no-container-mount-home"]
    binds = (shlex.quote(mount) for mount in mounts)
    return ["apptainer", "exec", "--nv", *(f"--bind={bind}" for bind in binds), f"--pwd={shlex.quote(str(job.folder))}", image]


def _common_part() -> str:
    return TEMPLATE.read_text(encoding="utf-8").partition(COMMON_PART)[2]
