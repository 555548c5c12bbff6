"""What MLflow is told of a run besides its points: parameters that sort and filter, and tags that say where it comes from."""

from __future__ import annotations

import getpass
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from tdformer import __version__
from tdformer.config import RunConfig
from tdformer.config.yaml_io import flatten
from tdformer.rundir.run_dir import RunDir
from tdformer.rundir.sessions import Session
from tdformer.tracking.run_ids import read_run_id

KEY_TAG = "tdformer.key"
"""By which the MLflow run of a run directory is found again."""
CHANGED = "changed."
"""A tag for each parameter that a resume changed: MLflow's parameters are written once."""
LONGEST_PARAM, LONGEST_TAG = 6000, 5000
"""Characters that MLflow takes."""


def params(config: RunConfig) -> dict[str, str]:
    """Dotted keys, and values as JSON: true, 0.05, [3, 4, 6], null; texts as they are."""
    return {name: _text(value)[:LONGEST_PARAM] for name, value in flatten(config).items()}


def changed(config: RunConfig, logged: dict[str, str]) -> dict[str, str]:
    """As tags: what differs from the parameters that MLflow has."""
    return {f"{CHANGED}{name}": text[:LONGEST_TAG] for name, text in params(config).items() if logged.get(name, text) != text}


def key(first: Session) -> str:
    """Of a run, by its first session: no two begin on one machine at the same microsecond."""
    return f"{first.began:.6f}-{''.join(letter for letter in first.host if letter.isalnum() or letter in '.-')}"


def tags(config: RunConfig, run_dir: RunDir, session: Session) -> dict[str, str]:
    """The commit under the name that MLflow's page knows, the rest under tdformer."""
    commit, _, is_changed = (session.commit or "").partition(" ")
    slurm = {"slurm_job": session.slurm_job, "slurm_restart": session.restart}
    origin = {"init": config.init, "parent_run": _parent(config.init)}
    computed = {"world_size": session.world_size, "gpus": session.gpus, "device": session.device, "host": session.host}
    versions = {f"version.{name}": version for name, version in (session.versions or {}).items()}
    facts: dict[str, Any] = {
        "config": config.name,
        "run_dir": run_dir.path.resolve(),
        "version": __version__,
        "git_dirty": bool(is_changed) if commit else None,
        **slurm,
        **origin,
        **computed,
        **versions,
    }
    known = {f"tdformer.{name}": _text(value)[:LONGEST_TAG] for name, value in facts.items() if value not in (None, "")}
    of_mlflow = {"mlflow.source.git.commit": commit, "mlflow.source.name": "tdformer train", "mlflow.user": _user()}
    return known | {name: text for name, text in of_mlflow.items() if text}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else str(value) if isinstance(value, Path) else json.dumps(value)


def _parent(init: Path | None) -> str | None:
    """The MLflow run of the stage before: of the run directory that `init` is, or lies in."""
    for folder in [init, *init.parents][:3] if init else []:
        if RunDir(folder).mlflow_runs.exists():
            return read_run_id(RunDir(folder), None)
    return None


def _user() -> str:
    with suppress(OSError, KeyError):  # in a container the user may have no name
        return getpass.getuser()
    return ""
