"""Finds the MLflow run of a run directory, or makes it.

That is the run whose id the directory holds; else one that was made for it while noting the id failed; else a new one. A copy of a run
directory holds the id of the original's run, and gets a new one.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

from tdformer.config import RunConfig
from tdformer.rundir import sessions
from tdformer.rundir.copies import original_of
from tdformer.rundir.run_dir import RunDir
from tdformer.rundir.sessions import Session
from tdformer.tracking import description
from tdformer.tracking.client import artifacts_beside_sqlite
from tdformer.tracking.errors import RefusedError
from tdformer.tracking.run_ids import note_run_id, read_run_ids

KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Tag of an experiment that makes MLflow's page show training, and not chats."""
UNKNOWN = "unknown"
"""The status of a session whose file is damaged. What MLflow says of the run then stays."""


def find_or_make(client: Any, run_dir: RunDir, uri: str, config: RunConfig) -> str:
    """Return the id of the MLflow run, and note it in the run directory. Raises RefusedError if that run was deleted."""
    name, first = config.tracking.experiment, _first_session(run_dir)
    run_id = _noted(client, run_dir, uri) or _unnoted(client, run_dir, name, first)
    if run_id is None:
        experiment = _experiment(client, name, artifacts_beside_sqlite(uri))
        tags = {description.KEY_TAG: description.key(first), description.FOLDER_TAG: str(run_dir.path.resolve())}
        run = client.create_run(experiment, start_time=int(first.began * 1000), run_name=run_dir.name, tags=tags)
        run_id = str(run.info.run_id)
    if read_run_ids(run_dir).get(uri) != run_id:
        with suppress(OSError):  # on a full disk or in somebody else's folder; the run is found again by its tag
            note_run_id(run_dir, uri, run_id)
    return run_id


def last_session(run_dir: RunDir) -> Session:
    """Return the newest session. If its file is damaged, the newest one before it stands for it, with an unknown status.

    A run without any gets a stand-in that has stopped. Raises OSError if a file cannot be read now.
    """
    is_newest = True
    for path in reversed(sessions.files(run_dir)):
        try:
            session = sessions.read(path)
            return session if is_newest else replace(session, status=UNKNOWN, comes_back=False)
        except ValueError:
            is_newest = False
    modified = (run_dir.config).stat().st_mtime
    return Session(began=modified, seen=modified, world_size=1, status="stopped" if is_newest else UNKNOWN)


def _first_session(run_dir: RunDir) -> Session:
    known, _ = sessions.read_all(run_dir)
    return known[0] if known else last_session(run_dir)


def _noted(client: Any, run_dir: RunDir, uri: str) -> str | None:
    """Return the noted run if this server has it. Ids noted under other URIs are tried too: the server may have had another name."""
    from mlflow.exceptions import MlflowException

    ids = read_run_ids(run_dir)
    for run_id in [ids[uri]] if uri in ids else ids.values():
        try:
            run = client.get_run(run_id)
            if _belongs_to_original(run, run_dir):
                continue
            if run.info.lifecycle_stage == "deleted":
                raise RefusedError(f"its run {run_id} is deleted; restore it with: mlflow runs restore --run-id {run_id}")
            return run_id
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
    return None


def _belongs_to_original(run: Any, run_dir: RunDir) -> bool:
    """Tell whether an MLflow run is that of another run directory, of which `run_dir` is a copy. The copy gets a run of its own.

    The folder that the MLflow run names is the original if it is a run directory whose first session is the same. Otherwise a new run
    lies where this one lay before it was moved.
    """
    folder = run.data.tags.get(description.FOLDER_TAG)
    original = original_of(run_dir.config, folder) if folder else None
    return original is not None and original.exists() and _begin_alike(RunDir(original.parent), run_dir)


def _begin_alike(one: RunDir, other: RunDir) -> bool:
    """Tell whether two run directories have the same first session. If a session cannot be read, they may have."""
    (known, unreadable), (others, unreadable_too) = sessions.read_all(one), sessions.read_all(other)
    if unreadable or unreadable_too:
        return True
    return [description.key(first) for first in known[:1]] == [description.key(first) for first in others[:1]]


def _unnoted(client: Any, run_dir: RunDir, name: str, first: Session) -> str | None:
    """Return a run that was made for this directory but not noted, because the answer was lost or the process was killed."""
    if (experiment := client.get_experiment_by_name(name)) is None:
        return None
    runs = client.search_runs([experiment.experiment_id], f"tags.`{description.KEY_TAG}` = '{description.key(first)}'")
    return next((run.info.run_id for run in runs if not _belongs_to_original(run, run_dir)), None)


def _experiment(client: Any, name: str, artifacts: str | None) -> str:
    from mlflow.exceptions import MlflowException

    if found := client.get_experiment_by_name(name):
        return found.experiment_id
    try:
        return client.create_experiment(name, artifacts, KIND)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return client.get_experiment_by_name(name).experiment_id  # another run made it at the same moment
