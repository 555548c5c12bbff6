"""Records every start of a job in the run directory, and decides whether another start makes sense."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import takewhile

from data_pipelines.storage.files import append_line
from data_pipelines.storage.passing_trouble import reading_own
from tdformer.rundir.advice import named_by
from tdformer.rundir.run_dir import RunDir

FILE = "attempts.jsonl"
MAX_RESTARTS, MAX_FRUITLESS = "TDFORMER_MAX_RESTARTS", "TDFORMER_MAX_FRUITLESS"


@dataclass(frozen=True)
class Attempt:
    """One start of a job."""

    job: str
    restart: int
    """The number of times that Slurm has requeued the job."""
    time: float
    nodes: str
    start: str | None
    """The checkpoint that the job continues from. None at the beginning of the run."""


def this_attempt(run_dir: RunDir, environment: Mapping[str, str]) -> Attempt:
    """Return the start of the job that this process belongs to, from the variables of Slurm."""
    restart = int(environment.get("SLURM_RESTART_COUNT", 0))
    return Attempt(environment["SLURM_JOB_ID"], restart, time.time(), environment.get("SLURM_JOB_NODELIST", ""), latest(run_dir))


def latest(run_dir: RunDir) -> str | None:
    """Return the name of the latest checkpoint of the run, or None without one. A damaged `latest` gets a name of its own.

    Raises UnavailableError if it cannot be read now.
    """
    try:
        with reading_own(run_dir.latest):
            run_dir.latest.read_bytes()
    except FileNotFoundError:
        return None
    except OSError:
        pass  # a folder, say
    return named_by(run_dir.latest) or "a damaged latest"


def read(run_dir: RunDir) -> list[Attempt]:
    """Return all starts of a run, oldest first. A line that a crash cut off is left out."""
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
    """Append a start to the file, and flush it to the disk."""
    run_dir.slurm.mkdir(parents=True, exist_ok=True)
    append_line(run_dir.slurm / FILE, json.dumps(asdict(attempt)))


def reason_to_give_up(run_dir: RunDir, restart: int, job: str, environment: Mapping[str, str]) -> str | None:
    """Return the reason why start number `restart` of a job must not happen, as a sentence. None if it may happen.

    Too many restarts are a reason, and several starts in a row from the same checkpoint.
    """
    max_restarts, max_fruitless = (int(environment.get(name, default)) for name, default in ((MAX_RESTARTS, 100), (MAX_FRUITLESS, 3)))
    if restart > max_restarts:
        return f"the job was put back into the queue {max_restarts} times, which is all that max_restarts allows"
    place, mine = latest(run_dir), [attempt for attempt in read(run_dir) if attempt.job == job]
    fruitless = len(list(takewhile(lambda attempt: attempt.start == place, reversed(mine))))
    if fruitless >= max_fruitless:
        where = f"from {place}" if place else "from the beginning"
        return f"it was started {fruitless} times {where} and never came to another checkpoint (max_fruitless is {max_fruitless})"
    return None
