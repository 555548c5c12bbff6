"""Reads from the environment what started this process, and as which rank. Imports no torch."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Mapping

from data_pipelines.errors import UserError

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Variables that torch and DeepSpeed read. torchrun and `tdformer train --processes` set them. For srun they are derived here."""

OWN_LAUNCHER = "TDFORMER_LAUNCHER"
"""The variable that `tdformer train --processes` sets. That launcher knows how a process ended, and says it."""

REQUEUES = "TDFORMER_REQUEUES"
"""The variable of jobs that are put back into the queue until their run is finished (launch.slurm)."""


def started_by_launcher(environment: Mapping[str, str]) -> bool:
    """Tell whether torchrun, srun or `tdformer train --processes` started this process as one of several."""
    return "RANK" in environment or "SLURM_STEP_ID" in environment


def rank_in(environment: Mapping[str, str]) -> int:
    """Return this process's rank. A process that was started alone has rank 0."""
    return int(environment.get("RANK") or environment.get("SLURM_PROCID") or 0)


def launcher_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return VARIABLES, as the launcher of this process gave them. A process that was started alone has a world size of 1."""
    if "RANK" in environment:
        if missing := [name for name in VARIABLES if name not in environment]:
            raise UserError(f"RANK is set but {missing[0]} is not; start with tdformer train --processes, torchrun or srun, or unset RANK.")
        return {name: environment[name] for name in VARIABLES}
    if "SLURM_STEP_ID" in environment:
        return _slurm_variables(environment)
    return dict(zip(VARIABLES, ("0", "1", "0", "127.0.0.1", str(free_port())), strict=True))


def gpu_index(environment: Mapping[str, str], visible: int) -> int:
    """Return the index of this process's GPU among the `visible` ones. launcher_variables must be in the environment.

    srun can bind tasks to GPUs. Each task then sees only its own GPU, as number 0.
    """
    local_world = int(environment.get("LOCAL_WORLD_SIZE", 1))
    if local_world > visible:
        raise UserError(f"{local_world} processes were started on a machine that shows {visible} GPU(s); start one process per GPU.")
    return int(environment["LOCAL_RANK"]) % visible


def _slurm_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Derive VARIABLES from srun's own. The port is a function of job and step, so that jobs on one node do not meet."""
    job, step = int(environment["SLURM_JOB_ID"]), int(environment["SLURM_STEP_ID"])
    host = environment.get("MASTER_ADDR") or _first_host(environment["SLURM_STEP_NODELIST"])
    port = environment.get("MASTER_PORT") or str(20000 + (job * 31 + step) % 20000)
    place = (environment["SLURM_PROCID"], environment["SLURM_STEP_NUM_TASKS"], environment["SLURM_LOCALID"])
    return dict(zip(VARIABLES, (*place, host, port), strict=True))


def _first_host(nodelist: str) -> str:
    listed = subprocess.run(["scontrol", "show", "hostnames", nodelist], capture_output=True, text=True, check=True)
    return listed.stdout.split()[0]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
