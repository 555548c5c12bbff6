"""Tells users how to go on with a run that ended before its time."""

from __future__ import annotations

import os

from tdformer.distributed.launch_environment import REQUEUES
from tdformer.rundir.run_dir import RunDir


def how_to_go_on(run_dir: RunDir, world_size: int) -> str:
    """Name the last checkpoint and the command that goes on from it, in one sentence."""
    if not run_dir.config.exists():
        return f"If {run_dir} was renamed, go on with: tdformer train NEW_NAME"
    if not run_dir.latest.exists():
        return f"No checkpoint was reached; {next_step(run_dir, world_size, 'start again')}"
    return f"The last whole checkpoint is {run_dir.latest.read_text(errors='replace').strip()}; {next_step(run_dir, world_size)}"


def next_step(run_dir: RunDir, world_size: int, verb: str = "go on") -> str:
    """Give the command that goes on with a run. A job that Slurm brings back needs none, and the text says so."""
    if os.environ.get(REQUEUES):
        return "its job is put back into the queue"
    return f"{verb} with: tdformer train {run_dir}" + (f" --processes {world_size}" if world_size > 1 else "")
