"""When and on what a run was computed, and what has become of it."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from tdformer.training import lock_file

FOLDER = "sessions"
State = Literal["running", "finished", "stopped", "failed", "lost", "queued", "new", "damaged"]
ENDED: tuple[State, ...] = ("finished", "stopped", "failed")
MEANING: dict[State, str] = {
    "running": "a process is training",
    "finished": "all epochs are done",
    "stopped": "told to stop, its state saved",
    "failed": "ended by an error",
    "lost": "killed without an end",
    "queued": "handed to Slurm, not started yet",
    "new": "not started yet",
    "damaged": "cannot be read",
}


@dataclass(frozen=True)
class Session:
    """One time that a run was trained, from a start to an end."""

    began: float
    """In seconds since 1970, as `seen`, the last sign of life."""
    seen: float
    world: int
    """Processes."""
    gpus: int = 0
    """Per machine or in all; 0: trained on CPUs."""
    device: str = ""
    host: str = ""
    first_step: int = 0
    step: int = 0
    status: str = "running"
    slurm_job: str | None = None
    restart: int | None = None
    commit: str | None = None

    @property
    def device_hours(self) -> float:
        """Hours times processes, one per GPU."""
        return max(self.seen - self.began, 0) / 3600 * self.world


def read_all(run_dir: Path) -> tuple[list[Session], list[str]]:
    """Sessions from the first to the last, and a note for each that cannot be read."""
    sessions, notes = [], []
    for path in sorted((run_dir / FOLDER).glob("[0-9]*.json")):
        try:
            sessions.append(_session(json.loads(path.read_bytes())))
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            notes.append(f"{FOLDER}/{path.name} cannot be read; its time is not counted")
    return sessions, notes


def _session(tree: dict[str, Any]) -> Session:
    """Unknown keys are those of a younger version. Raises TypeError or ValueError where a number is none."""
    known = {field.name: tree[field.name] for field in fields(Session) if field.name in tree}
    numbers = {name: float(known[name]) for name in ("began", "seen")}
    counts = {name: int(known.get(name, 0)) for name in ("world", "gpus", "first_step", "step")}
    texts = {name: str(known.get(name, "")) for name in ("device", "host", "status")}
    return Session(**{**known, **numbers, **counts, **texts})


def state_of(run_dir: Path, sessions: Sequence[Session], has_begun: bool, is_complete: bool) -> State:
    """Of runs that wrote no sessions, as those of older versions, as far as their lock and their metrics tell it."""
    status = sessions[-1].status if sessions else None
    for ended in ENDED:
        if status == ended:
            return ended
    if _is_held(run_dir):
        return "running"
    if status is not None or (run_dir / lock_file.NAME).exists():
        return "lost"
    if has_begun:
        return "finished" if is_complete else "stopped"
    return "queued" if (run_dir / "slurm").is_dir() else "new"


def _is_held(run_dir: Path) -> bool:
    """Looked at only: unlike a start, this writes nothing into the folder, and goes by this machine's clock."""
    path = run_dir / lock_file.NAME
    try:
        holder = lock_file.read(path)
        if holder and holder.is_here:
            return holder.is_running
        return time.time() - path.stat().st_mtime < lock_file.STALE_SECONDS
    except OSError:
        return False
