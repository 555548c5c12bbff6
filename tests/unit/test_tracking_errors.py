"""These tests check what each error of MLflow's client means. Real servers, databases and libraries raise the errors where possible."""

from __future__ import annotations

import socket
import sqlite3
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from tests.faults.disk_worker import files_of_at_most
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


def test_a_sqlite_file_on_a_full_disk_is_told_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """MLflow's own traceback of the error, which it also raises, is not printed."""
    path = tmp_path / "mlflow.db"
    uri = f"sqlite:///{path}"
    client = open_client(uri)
    run = client.create_run("0").info.run_id
    with files_of_at_most(0):
        error = raised_by(lambda: client.log_metric(run, "loss", 1.0))
    assert (is_permanent(error, uri), explain(error)) == (False, "disk I/O error")
    assert "Traceback" not in "".join(capfd.readouterr())
    client.log_metric(run, "loss", 1.0)
    assert client.get_run(run).data.metrics == {"loss": 1.0}


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


# --- proxies, TLS, redirects --------------------------------------------------------------------------------


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("upper", [False, True])
def test_a_dead_proxy_is_named(scheme: str, upper: bool, no_proxies: None, monkeypatch: pytest.MonkeyPatch) -> None:
    name, address = f"{scheme}_proxy".upper() if upper else f"{scheme}_proxy", f"127.0.0.1:{free_port()}"
    monkeypatch.setenv(name, f"http://ada:secret@{address}")
    uri = f"{scheme}://mlflow.example:5000"
    error = asked(uri)
    told = f"the proxy {address} of {name} does not pass it on (nothing listens there): correct {name}, or add mlflow.example to no_proxy"
    assert (is_permanent(error, uri), explain(error, uri)) == (False, told)
    assert f"cannot be reached from here ({told}); runs go on without it" in str(probe.probe(uri, "tdformer"))
    monkeypatch.setenv("no_proxy", "mlflow.example")
    assert "proxy" not in explain(asked(uri), uri)


def test_a_proxy_that_does_not_know_the_server_is_named(no_proxies: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(page(403)) as proxy:
        monkeypatch.setenv("http_proxy", proxy)
        error = asked(SERVER)
        told = f"it does not permit this to you (it was asked through the proxy {proxy} of http_proxy; if that is wrong, correct http_proxy"
        assert told in explain(error, SERVER)
        with pytest.raises(UserError, match=f"or ask who runs it; it was asked through the proxy {proxy} of http_proxy"):
            probe.probe(SERVER, "tdformer")
    with answering(api(400, "INVALID_PARAMETER_VALUE")) as proxy:
        monkeypatch.setenv("http_proxy", proxy)
        assert "proxy" not in explain(asked(SERVER), SERVER), "MLflow's own answers are not the proxy's"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate that nobody but itself has signed, and its key, in one file."""
    path = tmp_path_factory.mktemp("tls") / "own.pem"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        *names,
        "-keyout",
        path,
        "-out",
        path.with_suffix(".crt"),
    ]
    subprocess.run(command, check=True, capture_output=True)
    path.write_text(path.read_text() + path.with_suffix(".crt").read_text())
    return path


@contextmanager
def answering_by_tls(answer: Answer, certificate: Path) -> Iterator[str]:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    with answering(answer, tls) as uri:
        yield uri.replace("http://127.0.0.1", "https://localhost")


def test_a_certificate_that_is_not_trusted(certificate: Path, no_proxies: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with answering_by_tls(api(404, "RESOURCE_DOES_NOT_EXIST"), certificate) as uri:
        error = asked(uri)
        told = (
            "its certificate is not accepted here (self-signed certificate): set MLFLOW_TRACKING_SERVER_CERT_PATH to the file of its auth"
        )
        assert is_permanent(error, uri)
        assert told in explain(error, uri)
        assert told in str(probe.probe(uri, "tdformer"))
        for name, value in (("MLFLOW_TRACKING_SERVER_CERT_PATH", str(certificate)), ("MLFLOW_TRACKING_INSECURE_TLS", "true")):
            with monkeypatch.context() as settings:
                settings.setenv(name, value)
                assert open_client(uri).get_experiment_by_name("tdformer") is None
                assert probe.probe(uri, "tdformer") is None


def test_https_where_none_is_spoken(no_proxies: None) -> None:
    with answering(page(200)) as uri:
        tls = uri.replace("http://", "https://")
        error = asked(tls)
        assert (is_permanent(error, tls), explain(error, tls)) == (True, "it does not speak TLS: write http:// in place of https://")
        with pytest.raises(UserError, match="it does not speak TLS: write http:// in place of https://"):
            probe.probe(tls, "tdformer")


def test_a_login_page(no_proxies: None) -> None:
    def log_in(handler: BaseHTTPRequestHandler) -> None:
        if handler.path.startswith("/login"):
            return reply(handler, 200, b"<html>Who are you?</html>", "text/html")
        handler.send_response(302)
        handler.send_header("Location", "/login?next=secret")
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return None

    with answering(log_in) as uri:
        error, told = (
            asked(uri),
            f"it redirects to {uri}/login: if that is a login page, set MLFLOW_TRACKING_TOKEN or give the address behind it",
        )
        assert is_permanent(error, uri)
        assert explain(error, uri).startswith(told)
        with pytest.raises(UserError, match=f"{uri} is no MLflow server: {told}"):
            probe.probe(uri, "tdformer")


def test_a_redirect_to_another_address_that_keeps_no_request(no_proxies: None) -> None:
    """From http to https, for example: a redirected request to make a run comes as one to read one."""
    with answering(page(405)) as other:

        def move(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(301)
            handler.send_header("Location", other + handler.path)
            handler.send_header("Content-Length", "0")
            handler.end_headers()

        with answering(move) as uri:
            told = explain(asked(uri), uri)
            assert told.startswith(f"it redirects to {other}/api/2.0/mlflow/experiments/get-by-name: if that is a login page")


def test_a_name_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, no_proxies: None) -> None:
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr("socket.getaddrinfo", fail)
    told = "there is no such host, or the name server does not answer"
    assert explain(asked(SERVER), SERVER) == told
    assert f"cannot be reached from here ({told})" in str(probe.probe(SERVER, "tdformer"))


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
