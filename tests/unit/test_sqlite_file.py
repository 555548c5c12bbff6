"""Runs that begin at the same moment share one new sqlite file, and a run that is killed while it makes one does no harm."""

from __future__ import annotations

import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from tdformer.tracking.client import open_client
from tests.conftest import write_config
from tests.distributed.starter import Started

pytestmark = pytest.mark.slow


def tables(path: Path) -> list[str]:
    """Return all columns, indexes and rows of alembic, which says up to which change the file has come."""
    with closing(sqlite3.connect(path)) as database:
        names = database.execute("SELECT type, name FROM sqlite_master").fetchall()
        columns = [(name, *column) for kind, name in names for column in database.execute(f"PRAGMA table_xinfo({name})") if kind == "table"]
        return sorted(map(repr, [*names, *columns, *database.execute("SELECT * FROM alembic_version")]))


def test_it_is_the_file_that_mlflow_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tdformer.tracking.client import import_mlflow

    monkeypatch.chdir(tmp_path)
    import_mlflow().MlflowClient(f"sqlite:///{tmp_path}/theirs.db")
    (tmp_path / "ours.db").touch()  # as a start leaves it that was killed in a bad moment
    client = open_client(f"sqlite:///{tmp_path}/ours.db")
    assert tables(tmp_path / "ours.db") == tables(tmp_path / "theirs.db")
    assert len(tables(tmp_path / "ours.db")) > 30
    assert [experiment.name for experiment in client.search_experiments()] == ["Default"]
    assert not (tmp_path / "mlruns").exists()


@pytest.mark.parametrize("count", [2, 3])
def test_runs_that_begin_together(run_config: dict, tmp_path: Path, count: int) -> None:
    """All are begun on a database that is not there, in a folder that is not there."""
    run_config["training"]["epochs"] = 1
    run_config["tracking"]["uri"] = f"sqlite:///{tmp_path}/new/mlflow.db"
    config = write_config(run_config, tmp_path)
    runs = [
        Started("launch", ["train", config, "--run-dir", tmp_path / f"run-{number}"], {}, tmp_path / f"{number}") for number in range(count)
    ]
    assert [(run.wait(timeout=240), run.output("stderr")) for run in runs] == [(0, "")] * count
    with closing(sqlite3.connect(tmp_path / "new" / "mlflow.db")) as database:
        assert database.execute("SELECT name, status FROM runs ORDER BY name").fetchall() == [
            (f"run-{n}", "FINISHED") for n in range(count)
        ]
        assert database.execute("SELECT count(*) FROM experiments").fetchone() == (2,)


def test_a_run_that_is_killed_while_it_makes_the_file(run_config: dict, tmp_path: Path) -> None:
    run_config["training"]["epochs"] = 1
    run_config["tracking"]["uri"] = f"sqlite:///{tmp_path}/new.db"
    arguments = ["train", write_config(run_config, tmp_path), "--run-dir", tmp_path / "run"]
    environment = {"TMPDIR": str(tmp_path)}
    first = Started("launch", arguments, environment, tmp_path / "first")
    while not list(tmp_path.glob("tdformer-mlflow-*/mlflow.db")):
        assert first.poll() is None
        time.sleep(0.01)
    time.sleep(0.5)
    first.kill()
    assert first.wait(timeout=10) == -signal.SIGKILL
    second = Started("launch", arguments, environment, tmp_path / "second")
    assert (second.wait(timeout=240), second.output("stderr")) == (0, "")
