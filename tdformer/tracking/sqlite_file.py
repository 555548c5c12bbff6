"""Makes the sqlite file in which MLflow keeps runs, with all its tables at once.

MLflow itself makes a file and then changes it in many steps. Of two runs that begin at the same moment, as those of a sweep do, each would
meet what the other has half done, and a run that is killed meanwhile would leave a file that is of no use to anyone.
"""

from __future__ import annotations

import fcntl
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

from data_pipelines.storage.locks import NO_LOCKS

SECONDS_TO_WAIT = 60.0
"""Time limit for other processes that write to the file."""


def open_or_make(path: Path) -> None:
    """Check that the file can be opened. Make it if there is none, or if it is empty. Raises OSError and sqlite3.Error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _check_locks(path.parent)
    with closing(sqlite3.connect(path)) as database:  # This fails at once. MLflow would try again for minutes.
        if not _is_empty(database):
            return
    with tempfile.TemporaryDirectory(prefix="tdformer-mlflow-") as folder:
        original = Path(folder) / "mlflow.db"
        _make(original)
        _fill_if_empty(path, original)


def _check_locks(folder: Path) -> None:
    """Raise OSError if the file system has no locks. sqlite would take the file for one that another process locks, for ever."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in NO_LOCKS:
            text = f"{folder} is on a file system without locks, which sqlite needs: put the file on another one, or use a server"
            raise OSError(text) from None


def _is_empty(database: sqlite3.Connection) -> bool:
    return not database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]


def _make(path: Path) -> None:
    """Let MLflow make a file. It takes seconds."""
    from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    SqlAlchemyStore(f"sqlite:///{path}", DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH).engine.dispose()


def _fill_if_empty(path: Path, original: Path) -> None:
    """Copy all tables and rows in one transaction, for which sqlite keeps other processes out. The first one to come copies."""
    with closing(sqlite3.connect(path, SECONDS_TO_WAIT, isolation_level=None)) as database, closing(sqlite3.connect(original)) as made:
        database.execute("BEGIN EXCLUSIVE")
        if _is_empty(database):
            for statement in made.iterdump():
                if statement not in ("BEGIN TRANSACTION;", "COMMIT;"):
                    database.execute(statement)
        database.execute("COMMIT")
