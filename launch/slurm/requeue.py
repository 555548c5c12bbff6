"""Decides at the beginning of a job whether this start makes sense, and at its end whether the job is requeued."""

from __future__ import annotations

import os

from data_pipelines.errors import UnavailableError, UserError
from data_pipelines.storage.patience import SOME_PATIENCE, Patience, patiently
from launch.exit_codes import EXIT_ERROR
from launch.slurm import attempts, scheduler
from tdformer.rundir.run_dir import RunDir
from tdformer.tracking import sync

RUNNING, CANCELLED = "RUNNING", "CANCELLED"
PATIENCE = Patience(600.0)
"""How long a job asks a controller that does not answer, as one that is restarted. Without its answer the job would never come back."""


def begin(run_dir: RunDir) -> str:
    """Record this start of the job, and return a sentence about it.

    Raises UserError if the last starts made no progress, so that a crash loop ends by itself.
    """
    attempt = patiently(lambda: attempts.this_attempt(run_dir, os.environ), SOME_PATIENCE)
    if reason := attempts.reason_to_give_up(run_dir, attempt.restart, attempt.job, os.environ):
        raise UserError(f"{reason}. Look at what ended it before, then go on with: tdformer submit {run_dir}")
    attempts.append(run_dir, attempt)
    place = f"goes on from {attempt.start}" if attempt.start else "begins"
    return f"job {attempt.job}, restart {attempt.restart}, on {attempt.nodes}: {run_dir} {place}"


def end(run_dir: RunDir, code: int) -> str:
    """Requeue the job if it ended before its run and nothing has to be corrected first. Return a sentence about what was done.

    code: the exit code of the ranks. torchrun returns 1 for every failure, so under it a wrong input is tried again `max_fruitless`
    times. Raises AwayError if Slurm does not answer for ten minutes.
    """
    job, restart = os.environ["SLURM_JOB_ID"], int(os.environ.get("SLURM_RESTART_COUNT", 0))
    if code == 0:
        return f"job {job} is done: {run_dir} is finished"
    if code == EXIT_ERROR:
        return _give_up(job, "there is something to mend first, said above", run_dir)
    if (state := patiently(lambda: scheduler.state(job), PATIENCE)) != RUNNING:
        if state and state.startswith(CANCELLED):
            sync.close(run_dir, comes_back=False)
        # Another party is ending the job. A requeue would revive a cancelled one. Slurm requeues a preempted one itself.
        return f"job {job} is left to Slurm, which is ending it ({state}); {run_dir} is saved as far as {_place(run_dir)}"
    if reason := patiently(lambda: attempts.reason_to_give_up(run_dir, restart + 1, job, os.environ), SOME_PATIENCE):
        return _give_up(job, reason, run_dir)
    sync.close(run_dir)
    patiently(lambda: scheduler.requeue(job), PATIENCE)
    return f"job {job} ended with code {code} and is put back into the queue; it will go on from {_place(run_dir)}"


def _give_up(job: str, reason: str, run_dir: RunDir) -> str:
    sync.close(run_dir, comes_back=False)
    return f"job {job} is not put back into the queue: {reason}. Go on with: tdformer submit {run_dir}"


def _place(run_dir: RunDir) -> str:
    try:
        return attempts.latest(run_dir) or "the beginning"
    except UnavailableError:
        return "its last checkpoint"
