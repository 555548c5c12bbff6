"""Reads from the environment what started this process, and as which rank. Imports no torch."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from data_pipelines.errors import UserError

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Variables that torch and DeepSpeed read. torchrun and `tdformer train --processes` set them; srun's and mpirun's are translated here."""

OWN_LAUNCHER = "TDFORMER_LAUNCHER"
"""The variable that `tdformer train --processes` sets. That launcher knows how a process ended, and says it."""

REQUEUES = "TDFORMER_REQUEUES"
"""The variable of jobs that are put back into the queue until their run is finished (launch.slurm)."""

OF_TORCHRUN = "TORCHELASTIC_"
"""Prefix of variables by which torchrun tells torch to meet at its own server. Processes that another launcher starts must not see them."""


@dataclass(frozen=True)
class Launcher:
    """A program that starts all processes of a run, and the variables in which it says which one a process is."""

    name: str
    rank: str
    world_sizes: tuple[str, ...]
    """Variables that may hold the number of processes; the first that is set counts."""
    local_ranks: tuple[str, ...]
    marks: tuple[str, ...] = ()
    """Variables that must be set too, if `rank` may also be set by something else."""

    def has_started(self, environment: Mapping[str, str]) -> bool:
        return all(name in environment for name in (self.rank, *self.marks))

    def world_size(self, environment: Mapping[str, str]) -> int:
        """Return the number of processes that were started. Raises UserError if the environment does not say it."""
        return _number(environment, self.world_sizes, self.rank)


TORCHRUN = Launcher("torchrun, or another launcher that sets RANK,", "RANK", ("WORLD_SIZE",), ("LOCAL_RANK",))
SRUN = Launcher("srun", "SLURM_PROCID", ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS"), ("SLURM_LOCALID",), ("SLURM_STEP_ID",))
OPEN_MPI = Launcher("mpirun", "OMPI_COMM_WORLD_RANK", ("OMPI_COMM_WORLD_SIZE",), ("OMPI_COMM_WORLD_LOCAL_RANK",))
MPICH = Launcher("mpiexec", "PMI_RANK", ("PMI_SIZE",), ("MPI_LOCALRANKID", "MV2_COMM_WORLD_LOCAL_RANK"))
LAUNCHERS = (TORCHRUN, SRUN, OPEN_MPI, MPICH)
"""Launchers in the order in which they count. torchrun within a step of srun has started its own processes."""


def launcher_of(environment: Mapping[str, str]) -> Launcher | None:
    """Return what started this process, as one of several or alone; None if nothing says that anything did."""
    return next((launcher for launcher in LAUNCHERS if launcher.has_started(environment)), None)


def must_start(processes: int, environment: Mapping[str, str]) -> bool:
    """Tell whether `--processes` asks this process to start the ranks of a run. Within a step of one task it does.

    Raises UserError if a launcher has started several processes already: each of them would start as many again.
    """
    launcher = launcher_of(environment)
    if processes == 1 or launcher is None:
        return processes > 1
    if (started := launcher.world_size(environment)) > 1:
        raise UserError(
            f"{launcher.name} has started {started} processes, and --processes {processes} asks each of them to start {processes} more; "
            f"leave --processes out, or let {launcher.name} start one."
        )
    return True


def rank_in(environment: Mapping[str, str]) -> int:
    """Return this process's rank. A process that was started alone has rank 0, and so has one whose rank is no number."""
    launcher = launcher_of(environment)
    text = environment[launcher.rank] if launcher else "0"
    return int(text) if text.isdecimal() else 0


def launcher_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return VARIABLES, as the launcher of this process gave them. A process that was started alone has a world size of 1.

    Raises UserError if they are incomplete.
    """
    launcher = launcher_of(environment)
    if launcher is TORCHRUN:
        return _given_variables(environment)
    if launcher is None or launcher.world_size(environment) == 1:
        return dict(zip(VARIABLES, ("0", "1", "0", "127.0.0.1", str(free_port())), strict=True))
    host, port = _meeting_place_of_srun(environment) if launcher is SRUN else _given_meeting_place(environment, launcher)
    numbers = [_number(environment, names, launcher.rank) for names in ((launcher.rank,), launcher.world_sizes, launcher.local_ranks)]
    return dict(zip(VARIABLES, (*map(str, numbers), host, port), strict=True))


def without_launcher(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment for processes that this one starts as ranks, without what torchrun told this process of itself."""
    return {name: value for name, value in environment.items() if not name.startswith(OF_TORCHRUN)}


def gpu_index(environment: Mapping[str, str], visible: int) -> int:
    """Return the index of this process's GPU among the `visible` ones. launcher_variables must be in the environment.

    srun can bind tasks to GPUs. Each task then sees only its own GPU, as number 0.
    """
    local_world = int(environment.get("LOCAL_WORLD_SIZE", 1))
    if local_world > visible:
        raise UserError(f"{local_world} processes were started on a machine that shows {visible} GPU(s); start one process per GPU.")
    return int(environment["LOCAL_RANK"]) % visible


def _given_variables(environment: Mapping[str, str]) -> dict[str, str]:
    if missing := [name for name in VARIABLES if name not in environment]:
        raise UserError(f"RANK is set but {missing[0]} is not; start with tdformer train --processes, torchrun or srun, or unset RANK.")
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"):
        _number(environment, (name,), "RANK")
    return {name: environment[name] for name in VARIABLES}


def _number(environment: Mapping[str, str], names: tuple[str, ...], mark: str) -> int:
    """Return the number in the first of these variables that is set. Raises UserError if none is, or if it holds no number."""
    name = next((name for name in names if name in environment), None)
    if name is None:
        raise UserError(f"{mark} is set but {names[0]} is not; start with tdformer train --processes, torchrun or srun, or unset {mark}.")
    if not environment[name].isdecimal():
        raise UserError(f"{name} is {environment[name]!r} and no number; start with tdformer train --processes, torchrun or srun.")
    return int(environment[name])


def _meeting_place_of_srun(environment: Mapping[str, str]) -> tuple[str, str]:
    """Return host and port of rank 0. The port is a function of job and step, so that jobs on one node do not meet."""
    job, step = int(environment["SLURM_JOB_ID"]), int(environment["SLURM_STEP_ID"])
    host = environment.get("MASTER_ADDR") or _first_host(environment.get("SLURM_STEP_NODELIST") or environment["SLURM_JOB_NODELIST"])
    return host, environment.get("MASTER_PORT") or str(20000 + (job * 31 + step) % 20000)


def _given_meeting_place(environment: Mapping[str, str], launcher: Launcher) -> tuple[str, str]:
    if "MASTER_ADDR" not in environment or "MASTER_PORT" not in environment:
        raise UserError(
            f"{launcher.name} has started {launcher.world_size(environment)} processes, which do not know where to meet: set MASTER_ADDR "
            f"to the host of rank 0 and MASTER_PORT to a free port for all, or start with tdformer train --processes, torchrun or srun."
        )
    return environment["MASTER_ADDR"], environment["MASTER_PORT"]


def _first_host(nodelist: str) -> str:
    try:
        listed = subprocess.run(["scontrol", "show", "hostnames", nodelist], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(
            f"the first of the nodes {nodelist} cannot be found out ({error}); set MASTER_ADDR to the host of rank 0."
        ) from None
    return listed.stdout.split()[0]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
