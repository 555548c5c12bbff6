"""MLflow's client: how it is set up, and what its errors mean."""

from __future__ import annotations

import logging
import os
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

SQLITE = "sqlite:///"
NO_JSON = "not in a valid JSON format"
"""In MLflow's words."""
TIMEOUT_S = "10"
"""Of one request to a server."""


class RefusedError(Exception):
    """Waiting will not help."""


def is_server(uri: str) -> bool:
    """In contrast to a database that MLflow's client opens itself."""
    return uri.startswith(("http://", "https://"))


def import_mlflow() -> Any:
    """MLflow, quiet and quick to give up: its own defaults try an unreachable server for many minutes, and a Mirror tries again itself."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", TIMEOUT_S)
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow

    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return mlflow


def open_client(uri: str) -> Any:
    """An MlflowClient. A sqlite file is opened, and made; a server is not asked yet."""
    mlflow = import_mlflow()
    if uri.startswith(SQLITE):
        _check_sqlite(Path(uri.removeprefix(SQLITE)))
    client = mlflow.MlflowClient(uri)
    with suppress(OSError):  # MLflow makes this folder in the current one for its default experiment, which is not used
        Path("mlruns").rmdir()
    return client


def is_permanent(error: Exception, uri: str) -> bool:
    """Whether waiting will not help: a refusal, in contrast to a server that is away, overloaded or broken."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, RefusedError):
        return True
    if isinstance(error, MlflowException):
        if NO_JSON in str(error):
            return True
        code = error.get_http_status_code()
        if 400 <= code < 500 and code not in (408, 429):
            return True
    return not is_server(uri) and not _is_database_away(error)


def explain(error: Exception) -> str:
    """What happened, on one line, with what MLflow's own words hide."""
    text = " ".join(str(error).split()) or type(error).__name__
    for sign, meaning in (
        ("error code 401", "it does not know you: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"),
        ("error code 403", "it does not permit this to you"),
        ("error code 404", "it does not speak MLflow's API, or an older version of it"),
        ("maintenance mode", "it is a folder, which MLflow keeps nothing in any more; give sqlite:///FILE or the URI of a server"),
        (NO_JSON, "something else than MLflow listens there"),
        ("ConnectTimeout", "it cannot be reached"),
        ("Connection refused", "nothing listens there"),
        ("Failed to resolve", "there is no such host"),
        ("Name or service not known", "there is no such host"),
        ("ReadTimeout", f"it did not answer within {os.environ.get('MLFLOW_HTTP_REQUEST_TIMEOUT', TIMEOUT_S)} s"),
        ("timed out", "it did not answer in time"),
    ):
        if sign in text:
            return meaning
    return text if len(text) <= 300 else f"{text[:300]} …"


def artifacts_beside_sqlite(uri: str) -> str | None:
    """Where an experiment's files go: beside the database, not in whatever folder the command was called in. A server knows itself."""
    return (Path(uri.removeprefix(SQLITE)).parent / "mlflow_artifacts").resolve().as_uri() if uri.startswith(SQLITE) else None


def _check_sqlite(path: Path) -> None:
    """Make the folder of a sqlite file, and see that the file can be opened."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as database:  # fails at once where MLflow would try again for minutes
        database.execute("PRAGMA schema_version")


def _is_database_away(error: Exception) -> bool:
    signs = ("database is locked", "Connection refused", "could not connect", "timeout expired", "Lost connection")
    return any(sign in str(error) for sign in signs)
