"""Every start of a job, written down in the run directory; and whether another one makes sense."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import takewhile

from tdformer.rundir.run_dir import RunDir

FILE = "attempts.jsonl"
MAX_RESTARTS, MAX_FRUITLESS = "TDFORMER_MAX_RESTARTS", "TDFORMER_MAX_FRUITLESS"


@dataclass(frozen=True)
class Attempt:
    """One start of a job."""

    job: str
    restart: int
    """How often Slurm had put it back into the queue."""
    time: float
    nodes: str
    start: str | None
    """The checkpoint that it goes on from; None at the beginning of the run."""


def this_attempt(run_dir: RunDir, environment: Mapping[str, str]) -> Attempt:
    """Of the job that this process belongs to."""
    restart = int(environment.get("SLURM_RESTART_COUNT", 0))
    return Attempt(environment["SLURM_JOB_ID"], restart, time.time(), environment.get("SLURM_JOB_NODELIST", ""), latest(run_dir))


def latest(run_dir: RunDir) -> str | None:
    """The name of the run's latest checkpoint."""
    try:
        return run_dir.latest.read_text().strip() or None
    except (OSError, ValueError):
        return None


def read(run_dir: RunDir) -> list[Attempt]:
    """All of a run, the oldest first. A line cut off by a crash is left out."""
    try:
        lines = (run_dir.slurm / FILE).read_text(errors="replace").splitlines()
    except OSError:
        return []
    attempts = []
    for line in lines:
        try:
            attempts.append(Attempt(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return attempts


def append(run_dir: RunDir, attempt: Attempt) -> None:
    run_dir.slurm.mkdir(parents=True, exist_ok=True)
    with (run_dir.slurm / FILE).open("a") as file:
        file.write(json.dumps(asdict(attempt)) + "\n")
        file.flush()
        os.fsync(file.fileno())


def hopeless(run_dir: RunDir, restart: int, job: str, environment: Mapping[str, str]) -> str | None:
    """Why start number `restart` of a job is one too many, as a sentence; None if it is not."""
    max_restarts, max_fruitless = (int(environment.get(name, default)) for name, default in ((MAX_RESTARTS, 100), (MAX_FRUITLESS, 3)))
    if restart > max_restarts:
        return f"the job was put back into the queue {max_restarts} times, which is all that max_restarts allows"
    place, mine = latest(run_dir), [attempt for attempt in read(run_dir) if attempt.job == job]
    fruitless = len(list(takewhile(lambda attempt: attempt.start == place, reversed(mine))))
    if fruitless >= max_fruitless:
        where = f"from {place}" if place else "from the beginning"
        return f"it was started {fruitless} times {where} and never came to another checkpoint (max_fruitless is {max_fruitless})"
    return None
