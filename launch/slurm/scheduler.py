"""Calls the commands of Slurm. Their error messages are passed on unchanged."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from data_pipelines.errors import UnavailableError, UserError

SECONDS_TO_ANSWER = 60.0
"""The timeout of a command. slurmctld can be busy for a while."""
ASK_AGAIN = "see whether Slurm works (sinfo), and give the same command again"


UNKNOWN_JOB = "Invalid job id"
AWAY = ("Unable to contact slurm controller", "Socket timed out", "Connection refused", "communication", "slurm_persist_conn")
"""Words with which Slurm's commands say that the controller does not answer now."""


class SchedulerError(UserError):
    """Slurm refused a request, or is not installed on this host."""


class AwayError(UnavailableError):
    """Slurm's controller does not answer now."""


def sbatch(script: Path, after: str | None = None) -> str:
    """Submit a script, and return the number of the job. Raises SchedulerError and AwayError.

    after: a job that must have ended well before. If it cannot any more, Slurm cancels this one.
    """
    waits = [f"--dependency=afterok:{after}", "--kill-on-invalid-dep=yes"] if after else []
    return _output("sbatch", "--parsable", *waits, str(script)).strip().partition(";")[0]


def requeue(job: str) -> None:
    """End a running job, and put it back into the queue. Raises SchedulerError and AwayError."""
    _output("scontrol", "requeue", job)


def state(job: str) -> str | None:
    """Return the state of a job or array: PENDING, RUNNING, CANCELLED, … A job that is being cleaned up still has one.

    Return None if Slurm does not know the job. Raises AwayError if Slurm does not answer.
    """
    shown = _run(["scontrol", "show", "job", "--oneliner", job])
    if shown.returncode and UNKNOWN_JOB not in shown.stderr:
        raise AwayError(f"Slurm does not say what became of job {job} ({_words(shown, 'scontrol')}); {ASK_AGAIN}.")
    found = re.search(r"\bJobState=(\w+)", shown.stdout)
    return found[1] if found else None


def check_installed() -> None:
    """Raise SchedulerError on a host without Slurm."""
    if shutil.which("sbatch") is None:
        raise SchedulerError(_absent("sbatch"))


def _output(*command: str) -> str:
    done = _run(command)
    if done.returncode:
        words = _words(done, command[0])
        if any(sign in words for sign in AWAY):
            raise AwayError(f"Slurm does not answer now ({words}); {ASK_AGAIN}.")
        raise SchedulerError(f"Slurm refused it ({words}).")
    return done.stdout


def _words(done: subprocess.CompletedProcess[str], command: str) -> str:
    lines = done.stderr.strip().splitlines()
    words = "; ".join(line.removeprefix(f"{command}: ").removeprefix("error: ") for line in lines)
    return f"{command}: {words or f'exit code {done.returncode}'}"


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_TO_ANSWER)
    except FileNotFoundError:
        raise SchedulerError(_absent(command[0])) from None
    except subprocess.TimeoutExpired:
        raise AwayError(f"{command[0]} gave no answer within {SECONDS_TO_ANSWER:g} s; {ASK_AGAIN}.") from None


def _absent(command: str) -> str:
    return f"there is no {command} on this host; give the command on a login node of the cluster, or look at the script with --dry-run."
