"""Which MLflow run a run directory has, at each server that it was sent to. Imports no MLflow."""

from __future__ import annotations

import json

from data_pipelines.storage.files import replace_file
from tdformer.rundir.run_dir import RunDir


def read_run_ids(run_dir: RunDir) -> dict[str, str]:
    """MLflow runs by tracking URI. What cannot be read counts as none: the run is found again by a tag of its own."""
    try:
        tree = json.loads((run_dir.mlflow_runs).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return {uri: str(run_id) for uri, run_id in tree.items()} if isinstance(tree, dict) else {}


def read_run_id(run_dir: RunDir, uri: str | None) -> str | None:
    """The MLflow run at `uri`; if it has none there, any other."""
    ids = read_run_ids(run_dir)
    return ids.get(uri or "") or next(iter(ids.values()), None)


def note_run_id(run_dir: RunDir, uri: str, run_id: str) -> None:
    """Raises OSError."""
    ids = {**read_run_ids(run_dir), uri: run_id}
    replace_file(run_dir.mlflow_runs, lambda partial: partial.write_text(json.dumps(ids, indent=1) + "\n"))
