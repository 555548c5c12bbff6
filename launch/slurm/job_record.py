"""Keeps the number of the job that has a run, in the run directory."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from data_pipelines.storage.files import replace_file
from launch.slurm import attempts
from tdformer.rundir.copies import original_of
from tdformer.rundir.run_dir import RunDir

FILE = "job.json"


def write(run: RunDir, number: str, script: Path) -> None:
    """Note the job that was submitted for a run. Raises OSError."""
    run.slurm.mkdir(exist_ok=True)
    when_and_who = {"submitted": time.time(), "user": os.environ.get("USER")}
    described = {"job": number, **when_and_who, "script": str(script), "run_dir": str(run.path.resolve())}
    replace_file(run.slurm / FILE, lambda partial: partial.write_text(json.dumps(described) + "\n"))


def jobs_of(run: RunDir) -> list[str]:
    """Return the jobs that may have a run: the one that was submitted last, and the one that started last. A copied run has none."""
    submitted = _read(run)
    if submitted.get("run_dir") and _is_copy(run, submitted):
        return []
    started = [attempt.job for attempt in attempts.read(run)[-1:]]
    return sorted({*started, str(submitted["job"])} if "job" in submitted else started)


def _read(run: RunDir) -> dict[str, Any]:
    try:
        described = json.loads((run.slurm / FILE).read_text())
    except (OSError, ValueError):
        return {}
    return described if isinstance(described, dict) else {}


def _is_copy(run: RunDir, submitted: dict[str, Any]) -> bool:
    original = original_of(run.config, str(submitted["run_dir"]))
    return original is not None and _read(RunDir(original.parent)) == submitted
