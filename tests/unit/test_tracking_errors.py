"""These tests check what each error of MLflow's client means. Real servers, databases and libraries raise the errors where possible."""

from __future__ import annotations

import socket
import sqlite3
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import requests
import sqlalchemy
from mlflow.exceptions import MlflowException, RestException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE
from mlflow.utils.request_utils import augmented_raise_for_status

from data_pipelines.errors import UserError
from tdformer.distributed.launch_environment import free_port
from tdformer.tracking import probe
from tdformer.tracking.client import open_client
from tdformer.tracking.errors import RefusedError, explain, is_permanent
from tests.faults.mlflow_server import answering, reply

SERVER, DATABASE = "http://host:5000", "postgresql://host/mlflow"
Answer = Callable[[BaseHTTPRequestHandler], None]


def raised_by(action: Callable[[], Any]) -> Exception:
    try:
        action()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def asked(uri: str) -> Exception:
    """Return the error of MLflow's client when it asks for an experiment."""
    return raised_by(lambda: open_client(uri).get_experiment_by_name("tdformer"))


def page(code: int) -> Answer:
    return lambda handler: reply(handler, code, b"<html>page</html>", "text/html")


def api(code: int, name: str) -> Answer:
    return lambda handler: reply(handler, code, b'{"error_code": "%s", "message": "told by the server"}' % name.encode())


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True


def be_slow(handler: BaseHTTPRequestHandler) -> None:
    time.sleep(2)
    hang_up(handler)


ANSWERS: dict[str, tuple[Answer, bool, str]] = {
    "page 400": (page(400), True, "error code 400"),
    "page 401": (page(401), True, "it does not know you: set MLFLOW_TRACKING_USERNAME"),
    "page 403": (page(403), True, "it does not permit this to you"),
    "page 404": (page(404), True, "it does not speak MLflow's API"),
    "api 401": (api(401, "UNAUTHENTICATED"), True, "it does not know you"),
    "api 403": (api(403, "PERMISSION_DENIED"), True, "it does not permit this to you"),
    "api 404": (api(404, "NOT_FOUND"), True, "told by the server"),
    "api 400": (api(400, "INVALID_PARAMETER_VALUE"), True, "told by the server"),
    "page 200": (page(200), True, "something else than MLflow listens there"),
    **{f"page {code}": (page(code), False, str(code)) for code in (408, 429, 500, 502, 503, 504, 507)},
    "api 429": (api(429, "REQUEST_LIMIT_EXCEEDED"), False, "429"),
    "api 500": (api(507, "INTERNAL_ERROR"), False, "told by the server"),
    "hangs up": (hang_up, False, "end closed connection"),
    "is slow": (be_slow, False, "it did not answer within 1 s"),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_answers_of_a_server(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answer, permanent, told = ANSWERS[case]
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with answering(answer) as uri:
        error = asked(uri)
    assert is_permanent(error, uri) is permanent
    assert told in explain(error)


def test_a_server_that_is_not_there() -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    error = asked(uri)
    assert (is_permanent(error, uri), explain(error)) == (False, "nothing listens there")


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "there is no such host"),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"), "there is no such host"),
        (TimeoutError("timed out"), "it cannot be reached"),
        (OSError(101, "Network is unreachable"), "Network is unreachable"),
    ],
)
def test_a_road_that_is_broken(failure: OSError, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operating system's failure is chosen here; urllib3, requests and MLflow wrap it."""

    def fail(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr("urllib3.util.connection.create_connection", fail)
    error = asked(SERVER)
    assert not is_permanent(error, SERVER)
    assert told in explain(error)


@pytest.mark.parametrize(("code", "permanent"), [(403, True), (404, True), (413, True), (429, False), (503, False)])
def test_a_file_that_is_not_taken(code: int, permanent: bool) -> None:
    """Files are sent by requests, whose errors are not MLflow's."""
    with answering(page(code)) as uri:
        error = raised_by(lambda: augmented_raise_for_status(requests.put(uri, data=b"file", timeout=10)))
        assert is_permanent(error, uri) is permanent


def test_a_server_whose_own_database_is_away_is_not_away_itself() -> None:
    error = RestException({"error_code": "TEMPORARILY_UNAVAILABLE", "message": "could not connect: Connection refused"})
    assert not is_permanent(error, SERVER)
    assert "Connection refused" in explain(error)


def locked(path: Path, act: Callable[[], Any]) -> Exception:
    with sqlite3.connect(path, isolation_level=None) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        return raised_by(act)


def wrapped(error: Exception) -> Exception:
    """Return an error in a session of the database, as MLflow passes it on."""

    def wrap() -> None:
        raise MlflowException(message=str(error), error_code=TEMPORARILY_UNAVAILABLE) from error

    return raised_by(wrap)


def test_a_sqlite_file_that_is_locked_will_be_free_again(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    engine = sqlalchemy.create_engine(f"sqlite:///{path}", connect_args={"timeout": 0})
    by_sqlite = locked(path, lambda: sqlite3.connect(path, timeout=0).execute("CREATE TABLE x (y)"))
    by_sqlalchemy = locked(path, lambda: engine.connect().execute(sqlalchemy.text("CREATE TABLE x (y)")))
    for error in (by_sqlite, by_sqlalchemy, wrapped(by_sqlalchemy)):
        assert not is_permanent(error, f"sqlite:///{path}"), error
        assert "database is locked" in explain(error)


def test_a_sqlite_file_that_is_none(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    (tmp_path / "mlflow.db").write_bytes(b"no database " * 100)
    error = asked(uri)
    assert (is_permanent(error, uri), explain(error)) == (True, "file is not a database")


def of_driver(text: str, *, disconnects: bool = False) -> Exception:
    """Return what SQLAlchemy makes of an error of a driver that is not installed here."""
    error = sqlalchemy.exc.OperationalError("SELECT 1", None, Exception(text), connection_invalidated=disconnects)
    return wrapped(error)


@pytest.mark.parametrize(
    ("error", "permanent"),
    [
        (of_driver('connection to server at "host", port 5432 failed: Connection refused'), False),
        (of_driver("could not connect to server: No route to host"), False),
        (of_driver('connection to server at "host" failed: timeout expired'), False),
        (of_driver("(2013, 'Lost connection to MySQL server during query')", disconnects=True), False),
        (wrapped(ConnectionResetError(104, "Connection reset by peer")), False),
        (of_driver('FATAL: password authentication failed for user "ada"'), True),
        (of_driver('could not translate host name "hots" to address: Name or service not known'), True),
        (raised_by(lambda: sqlalchemy.create_engine("postgresql+nonsense://host/x")), True),
        (PermissionError(13, "Permission denied"), True),
        (ModuleNotFoundError("No module named 'psycopg2'"), True),
        (RefusedError("its run is deleted"), True),
    ],
)
def test_errors_of_a_database(error: Exception, permanent: bool) -> None:
    assert is_permanent(error, DATABASE) is permanent
    assert "\n" not in explain(error)


def test_a_refusal_of_ours_is_permanent_at_a_server_too() -> None:
    assert is_permanent(RefusedError("its run is deleted"), SERVER)
    assert not is_permanent(PermissionError(13, "Permission denied"), SERVER)


def test_a_folder_is_named_as_such(tmp_path: Path) -> None:
    uri = tmp_path.as_uri()
    error = asked(uri)
    assert is_permanent(error, uri)
    assert explain(error).startswith("it is a folder, which MLflow keeps nothing in any more")


def test_a_probe_of_something_that_does_not_speak_http() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:

        def greet() -> None:
            connection, _ = other.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")

        thread = threading.Thread(target=greet, daemon=True)
        thread.start()
        with pytest.raises(UserError, match="is no MLflow server"):
            probe.probe(f"http://127.0.0.1:{other.getsockname()[1]}", "tdformer")
        thread.join()
