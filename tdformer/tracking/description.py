"""Describes a run for MLflow: parameters to sort and filter by, and tags that say where it comes from."""

from __future__ import annotations

import getpass
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from tdformer import __version__
from tdformer.config import RunConfig
from tdformer.config.dotted_keys import flatten
from tdformer.rundir.run_dir import RunDir
from tdformer.rundir.sessions import Session
from tdformer.tracking.run_ids import read_run_id

KEY_TAG = "tdformer.key"
"""The tag by which the MLflow run of a run directory is found again."""
FOLDER_TAG = "tdformer.run_dir"
"""The tag with the absolute path of the run directory."""
CHANGED = "changed."
"""Prefix of the tags for parameters that a resume changed. MLflow lets parameters be written only once."""
LONGEST_PARAM, LONGEST_TAG = 6000, 5000
"""Largest number of characters that MLflow takes."""


def params(config: RunConfig) -> dict[str, str]:
    """Return the configuration as MLflow parameters: dotted keys, with values as JSON (true, 0.05, [3, 4, 6], null) or plain text."""
    return {name: _text(value)[:LONGEST_PARAM] for name, value in flatten(config).items()}


def changed(config: RunConfig, logged: dict[str, str]) -> dict[str, str]:
    """Return tags for the keys whose value differs from the parameter that MLflow has."""
    return {f"{CHANGED}{name}": text[:LONGEST_TAG] for name, text in params(config).items() if logged.get(name, text) != text}


def key(first: Session) -> str:
    """Return a key that no other run has. No two runs begin on one machine at the same microsecond."""
    return f"{first.began:.6f}-{''.join(letter for letter in first.host if letter.isalnum() or letter in '.-')}"


def tags(config: RunConfig, run_dir: RunDir, session: Session) -> dict[str, str]:
    """Return the tags of a run. The commit has the name that MLflow's page knows; the others begin with tdformer."""
    commit, _, is_changed = (session.commit or "").partition(" ")
    slurm = {"slurm_job": session.slurm_job, "slurm_restart": session.restart}
    origin = {"init": config.init, "parent_run": _parent(config.init)}
    computed = {"world_size": session.world_size, "gpus": session.gpus, "device": session.device, "host": session.host}
    computed["reduction"] = session.reduction
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
    """Return the MLflow run of the run directory that `init` is, or lies in: the previous stage of this run."""
    for folder in [init, *init.parents][:3] if init else []:
        if RunDir(folder).mlflow_runs.exists():
            return read_run_id(RunDir(folder), None)
    return None


def _user() -> str:
    with suppress(OSError, KeyError):  # in a container the user may have no name
        return getpass.getuser()
    return ""
