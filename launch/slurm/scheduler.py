"""Calls the commands of Slurm. Their error messages are passed on unchanged."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from data_pipelines.errors import UserError

SECONDS_TO_ANSWER = 60.0
"""The timeout of a command. slurmctld can be busy for a while."""


class SchedulerError(UserError):
    """Slurm refused a request, gave no answer, or is not installed on this host."""


def sbatch(script: Path) -> str:
    """Submit a script, and return the number of the job. Raises SchedulerError."""
    return _output("sbatch", "--parsable", str(script)).strip().partition(";")[0]


def requeue(job: str) -> None:
    """End a running job, and put it back into the queue. Raises SchedulerError."""
    _output("scontrol", "requeue", job)


def state(job: str) -> str | None:
    """Return the state of a job or array: PENDING, RUNNING, CANCELLED, … A job that is being cleaned up still has one.

    Return None if Slurm does not know the job. Raises SchedulerError if Slurm does not answer.
    """
    shown = _run(["scontrol", "show", "job", "--oneliner", job])
    found = re.search(r"\bJobState=(\w+)", shown.stdout)
    return found[1] if shown.returncode == 0 and found else None


def check_installed() -> None:
    """Raise SchedulerError on a host without Slurm."""
    if shutil.which("sbatch") is None:
        raise SchedulerError(_absent("sbatch"))


def _output(*command: str) -> str:
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
