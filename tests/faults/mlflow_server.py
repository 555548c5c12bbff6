"""A real MLflow server that can be killed, halted and started again, and a road to it on which answers get lost."""

from __future__ import annotations

import os
import random
import signal
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tdformer.distributed.launch_environment import free_port


@dataclass
class Server:
    folder: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def database(self) -> Path:
        return self.folder / "mlflow.db"

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(self.port), "--host", "127.0.0.1"]
        command += ["--backend-store-uri", f"sqlite:///{self.database}", "--artifacts-destination", str(self.folder / "artifacts")]
        without_jobs = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # seven processes less, in sessions of their own that kill() misses
        environment = {**os.environ, **without_jobs, "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        deadline = time.monotonic() + 120
        while not self._answers():
            assert self.process.poll() is None, (self.folder / "server.log").read_text()
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.2)

    def kill(self) -> None:
        """SIGKILL, with all its workers."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def halt(self) -> None:
        """It takes connections, and never answers."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGCONT)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                return True
        except OSError:
            return False


@contextmanager
def answering(answer: Any, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """The URI of an HTTP server whose every request is given to `answer`, as BaseHTTPRequestHandler's methods are. tls: speak TLS."""
    methods = dict.fromkeys(("do_GET", "do_POST", "do_PATCH", "do_PUT", "do_DELETE"), answer)
    handler = type("Handler", (BaseHTTPRequestHandler,), {**methods, "log_message": lambda *_: None})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients may break a connection off
        if tls:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@contextmanager
def lossy_road(to: str, seed: int, loss: float) -> Iterator[str]:
    """The URI of a proxy that loses so many requests on their way, and so many answers to requests that arrived."""
    draws = random.Random(seed)

    def pass_on(handler: BaseHTTPRequestHandler) -> None:
        request_is_lost, answer_is_lost = draws.random() < loss, draws.random() < loss
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        if request_is_lost:
            handler.close_connection = True
            return
        headers = {name: value for name, value in handler.headers.items() if name.lower() not in ("host", "connection")}
        request = urllib.request.Request(to + handler.path, data=body or None, headers=headers, method=handler.command)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                code, content, kind = answer.status, answer.read(), answer.headers.get("Content-Type", "")
        except urllib.error.HTTPError as error:
            code, content, kind = error.code, error.read(), error.headers.get("Content-Type", "")
        if not answer_is_lost:
            reply(handler, code, content, kind)
        handler.close_connection = True

    with answering(pass_on) as uri:
        yield uri


def reply(handler: BaseHTTPRequestHandler, code: int, content: bytes, kind: str = "application/json") -> None:
    handler.send_response(code)
    handler.send_header("Content-Type", kind)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)
