"""Sends a run to MLflow when no process trains it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from data_pipelines.errors import UserError
from data_pipelines.storage.passing_trouble import is_passing, unavailable
from tdformer.config import TrackingConfig
from tdformer.config.yaml_io import checked, load_config
from tdformer.rundir import run_lock, sessions
from tdformer.rundir.creation import config_of
from tdformer.rundir.run_dir import RunDir
from tdformer.tracking.errors import explain
from tdformer.tracking.mirror import Mirror

SECONDS_TO_CLOSE = 15.0


@dataclass(frozen=True)
class Synced:
    """Says which run was sent, to which MLflow run, and how many points it lacked."""

    run: RunDir
    uri: str
    run_id: str
    points: int


def sync(run_dir: RunDir, uri: str | None = None, on_batch: Callable[[int], object] = lambda _: None) -> Synced:
    """Send what MLflow lacks of a run.

    uri: where to; None for the run's own tracking.uri. on_batch: gets the size of each batch of points. Raises UserError if MLflow does not
    take it, or if a process trains the run and sends by itself.
    """
    own = load_config(config_of(run_dir.path)).tracking.uri
    uri = own if uri is None else checked(TrackingConfig, {"uri": uri}, "--uri").uri
    if run_lock.is_held(run_dir):
        if uri == own:
            raise UserError(f"{run_dir} is being trained, and its process sends to {uri} by itself; sync it when it has ended.")
    else:
        _put_in_order(run_dir)
    mirror = Mirror(run_dir, uri)
    try:
        points = mirror.update(on_batch)
    except UserError:
        raise
    except Exception as error:  # MLflow passes on whatever its database or server raises
        if isinstance(error, OSError) and error.filename and is_passing(error, was_there=True):  # a file of the run, and no server
            raise unavailable(error.filename, error) from None
        raise UserError(
            f"MLflow at {uri} did not take {run_dir} ({explain(error, uri)}); nothing is lost, try again when that is mended."
        ) from None
    return Synced(run_dir, uri, mirror.run_id, points)


def close(run_dir: RunDir, *, comes_back: bool = True) -> None:
    """Tell MLflow that a run ended whose process died before it could say so. Take SECONDS_TO_CLOSE at most.

    comes_back: False if the run's job was to be put back into the queue, and is not. A process that closed the session before may have
    been killed before MLflow knew of it, so that this may be called again.
    """
    with suppress(OSError, ValueError):
        if not sessions.files(run_dir):
            return
        sessions.close_last(run_dir, comes_back=comes_back)
        mirror = Mirror(run_dir, load_config(run_dir.config).tracking.uri)
        thread = threading.Thread(target=_update, args=(mirror,), name="mlflow", daemon=True)
        thread.start()
        thread.join(SECONDS_TO_CLOSE)


def _update(mirror: Mirror) -> None:
    with suppress(Exception):  # whatever MLflow raises: `tdformer runs sync` tells it
        mirror.update()


def _put_in_order(run_dir: RunDir) -> None:
    with suppress(OSError, ValueError):  # a damaged session, or a folder that may only be read, keeps nothing from being sent
        sessions.close_last(run_dir)
