"""Keeps the ids of a run directory's MLflow runs, one for each tracking URI. Imports no MLflow."""

from __future__ import annotations

import json

from data_pipelines.storage.files import replace_file
from tdformer.rundir.run_dir import RunDir


def read_run_ids(run_dir: RunDir) -> dict[str, str]:
    """Return the MLflow run ids by tracking URI. A damaged file counts as empty, because the run is found again by its tag."""
    try:
        tree = json.loads((run_dir.mlflow_runs).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return {uri: str(run_id) for uri, run_id in tree.items()} if isinstance(tree, dict) else {}


def read_run_id(run_dir: RunDir, uri: str | None) -> str | None:
    """Return the MLflow run id at `uri`, or any other if there is none at `uri`, or None."""
    ids = read_run_ids(run_dir)
    return ids.get(uri or "") or next(iter(ids.values()), None)


def note_run_id(run_dir: RunDir, uri: str, run_id: str) -> None:
    """Note the MLflow run id at `uri`. A damaged file is kept beside the new one, with the suffix .damaged.

    Raises OSError, also if the ids that are there cannot be read now, so that none is lost.
    """
    path = run_dir.mlflow_runs
    there = path.read_bytes() if path.exists() else b""
    ids = read_run_ids(run_dir)
    if there and not ids:
        path.replace(path.with_suffix(".damaged"))
    replace_file(path, lambda partial: partial.write_text(json.dumps({**ids, uri: run_id}, indent=1) + "\n"))
