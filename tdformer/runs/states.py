"""Determines the state of a run from its sessions, its lock and its metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from tdformer.rundir import run_lock
from tdformer.rundir.run_dir import RunDir
from tdformer.rundir.sessions import Session

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


def state_of(run_dir: RunDir, sessions: Sequence[Session], has_begun: bool, is_complete: bool) -> State:
    """Return the state of a run. Without sessions it is inferred from the lock and the metrics.

    has_begun: there are rows of metrics. is_complete: the last epoch was evaluated.
    """
    status = sessions[-1].status if sessions else None
    for ended in ENDED:
        if status == ended:
            return ended
    if run_lock.is_held(run_dir):
        return "running"
    if status is not None or run_dir.lock.exists():
        return "lost"
    if has_begun:
        return "finished" if is_complete else "stopped"
    return "queued" if run_dir.slurm.is_dir() else "new"
