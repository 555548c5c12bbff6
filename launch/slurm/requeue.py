"""What a job's script asks at its beginning and its end: is there a point in this start, and is there to be another one?"""

from __future__ import annotations

import os

from data_pipelines.errors import UserError
from launch.slurm import attempts, scheduler
from tdformer.rundir.run_dir import RunDir
from tdformer.tracking import sync

EXIT_ERROR = 2
RUNNING, CANCELLED = "RUNNING", "CANCELLED"


def begin(run_dir: RunDir) -> str:
    """Write down this start of the job. Raises UserError if starts lead nowhere: a crash loop ends by itself."""
    attempt = attempts.this_attempt(run_dir, os.environ)
    if reason := attempts.hopeless(run_dir, attempt.restart, attempt.job, os.environ):
        raise UserError(f"{reason}. Look at what ended it before, then go on with: tdformer submit {run_dir}")
    attempts.append(run_dir, attempt)
    place = f"goes on from {attempt.start}" if attempt.start else "begins"
    return f"job {attempt.job}, restart {attempt.restart}, on {attempt.nodes}: {run_dir} {place}"


def end(run_dir: RunDir, code: int) -> str:
    """Put the job back into the queue, if it ended before the run did and nothing has to be mended first. Says what was done.

    code: how the ranks ended. Under torchrun that is 1 for whatever is not a success, so that what is to be mended is tried again,
    max_fruitless times.
    """
    job, restart = os.environ["SLURM_JOB_ID"], int(os.environ.get("SLURM_RESTART_COUNT", 0))
    if code == 0:
        return f"job {job} is done: {run_dir} is finished"
    if code == EXIT_ERROR:
        return _not_back(job, "there is something to mend first, said above", run_dir)
    if (state := scheduler.state(job)) != RUNNING:
        if state and state.startswith(CANCELLED):
            sync.close(run_dir, comes_back=False)
        # Someone ends it: cancelled, it would come back to life; requeued or preempted, Slurm brings it back by itself.
        return f"job {job} is left to Slurm, which is ending it ({state}); {run_dir} is saved as far as {_place(run_dir)}"
    if reason := attempts.hopeless(run_dir, restart + 1, job, os.environ):
        return _not_back(job, reason, run_dir)
    sync.close(run_dir)
    scheduler.requeue(job)
    return (
        f"job {job} ended with code {code} and is put back into the queue; it will go on from {attempts.latest(run_dir) or 'the beginning'}"
    )


def _not_back(job: str, reason: str, run_dir: RunDir) -> str:
    sync.close(run_dir, comes_back=False)
    return f"job {job} is not put back into the queue: {reason}. Go on with: tdformer submit {run_dir}"


def _place(run_dir: RunDir) -> str:
    return attempts.latest(run_dir) or "the beginning"
