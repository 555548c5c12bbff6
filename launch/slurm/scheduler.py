"""Slurm's own commands. What they have against something is passed on in their words."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from data_pipelines.errors import UserError

SECONDS_TO_ANSWER = 60.0
"""slurmctld can be busy for a while; one that does not answer at all is told as such."""


class SchedulerError(UserError):
    """Slurm refused something, or is not here."""


def sbatch(script: Path) -> str:
    """Submit a script. Returns the job's number."""
    return _answer("sbatch", "--parsable", str(script)).strip().partition(";")[0]


def requeue(job: str) -> None:
    """End a job that runs, and put it back into the queue."""
    _answer("scontrol", "requeue", job)


def state(job: str) -> str | None:
    """PENDING, RUNNING, CANCELLED, … of a job or array, even while it is still being cleaned up; None if Slurm does not know it."""
    shown = _run(["scontrol", "show", "job", "--oneliner", job])
    found = re.search(r"\bJobState=(\w+)", shown.stdout)
    return found[1] if shown.returncode == 0 and found else None


def check_is_here() -> None:
    """Raises SchedulerError on a host without Slurm."""
    if shutil.which("sbatch") is None:
        raise SchedulerError(_absent("sbatch"))


def _answer(*command: str) -> str:
    done = _run(command)
    if done.returncode:
        words = "; ".join(line.removeprefix(f"{command[0]}: ").removeprefix("error: ") for line in done.stderr.strip().splitlines())
        raise SchedulerError(f"Slurm refused it ({command[0]}: {words or f'exit code {done.returncode}'}).")
    return done.stdout


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_TO_ANSWER)
    except FileNotFoundError:
        raise SchedulerError(_absent(command[0])) from None
    except subprocess.TimeoutExpired:
        raise SchedulerError(f"{command[0]} gave no answer within {SECONDS_TO_ANSWER:g} s; see whether Slurm works (sinfo).") from None


def _absent(command: str) -> str:
    return f"there is no {command} on this host; give the command on a login node of the cluster, or look at the script with --dry-run."
