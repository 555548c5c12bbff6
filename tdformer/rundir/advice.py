"""Tells users how to go on with a run that ended before its time."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tdformer.distributed.launch_environment import REQUEUES
from tdformer.rundir.run_dir import RunDir

NAME = re.compile(r"step-[0-9]{8,}")


def how_to_go_on(run_dir: RunDir, world_size: int) -> str:
    """Name the last checkpoint and the command that goes on from it, in one sentence."""
    if not run_dir.config.exists():
        return f"If {run_dir} was renamed or moved, go on with: tdformer train NEW_PATH; if its disk is away, bring that back first"
    if not run_dir.latest.exists():
        return f"No checkpoint was reached; {next_step(run_dir, world_size, 'start again')}"
    if (name := named_by(run_dir.latest)) is None:
        return f"{run_dir.latest} names no checkpoint, and the newest whole one is gone on from; {next_step(run_dir, world_size)}"
    return f"The last whole checkpoint is {name}; {next_step(run_dir, world_size)}"


def named_by(pointer: Path) -> str | None:
    """Return the name of the checkpoint that `latest` or `best` holds. None if there is no such file, or if it is damaged."""
    try:
        name = pointer.read_text(errors="replace").strip()
    except OSError:
        return None
    return name if NAME.fullmatch(name) else None


def next_step(run_dir: RunDir, world_size: int, verb: str = "go on") -> str:
    """Give the command that goes on with a run. A job that Slurm brings back needs none, and the text says so."""
    if os.environ.get(REQUEUES):
        return "its job is put back into the queue"
    return f"{verb} with: tdformer train {run_dir}" + (f" --processes {world_size}" if world_size > 1 else "")
