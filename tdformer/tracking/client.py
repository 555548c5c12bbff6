"""Sets up MLflow's client."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from tdformer.tracking.sqlite_file import open_or_make

SQLITE = "sqlite:///"
TIMEOUT_S = "10"
"""A request to a server may take this long. MLflow reads it from an environment variable."""


def is_server(uri: str) -> bool:
    """True for the URI of a server, False for a database that MLflow's client opens itself."""
    return uri.startswith(("http://", "https://"))


def import_mlflow() -> Any:
    """Imports MLflow, and makes it quiet and quick to give up.

    MLflow's own defaults try an unreachable server for many minutes. A Mirror tries again itself.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", TIMEOUT_S)
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow

    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # It prints a traceback of each error that it also raises.
    return mlflow


def open_client(uri: str) -> Any:
    """Return an MlflowClient. A sqlite file is opened, or made; a server is not asked yet. Raises OSError and sqlite3.Error."""
    mlflow = import_mlflow()
    if (path := sqlite_path(uri)) is not None:
        open_or_make(path)
    client = mlflow.MlflowClient(uri)
    with suppress(OSError):  # MLflow makes this folder for its default experiment, which nobody uses.
        Path("mlruns").rmdir()
    return client


def artifacts_beside_sqlite(uri: str) -> str | None:
    """Return the URI of the folder for an experiment's files, beside the database. It is None for a server, which has its own."""
    path = sqlite_path(uri)
    return None if path is None else (path.parent / "mlflow_artifacts").resolve().as_uri()


def sqlite_path(uri: str) -> Path | None:
    """Return the file that MLflow opens for a sqlite URI, which may have options behind a `?`. None for a server."""
    if not uri.startswith(SQLITE):
        return None
    from sqlalchemy.engine import make_url

    return Path(make_url(uri).database or "")
