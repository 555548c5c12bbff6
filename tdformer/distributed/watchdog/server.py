"""The server is rank 0's side of the transport: it knows the status of all ranks and diagnoses them."""

from __future__ import annotations

import hmac
import os
import secrets
import selectors
import socket
import time
from collections.abc import Mapping
from typing import Any

from tdformer.distributed.watchdog.connection import Connection
from tdformer.distributed.watchdog.diagnosis import Diagnosis, Member, Timeouts, diagnose
from tdformer.distributed.watchdog.progress import Status
from tdformer.distributed.watchdog.transport import Address, diagnosis_message, goodbye_message, read_message
from tdformer.distributed.watchdog.wakeup import WakeupPipe

SECONDS_TO_DELIVER = 3.0
"""Rank 0 waits this long for the others to read its diagnosis, before it goes on to end its process."""
BACKLOG = 4096
"""Largest number of ranks that may connect at the same moment."""


class Server:
    """This is rank 0's Transport."""

    def __init__(self, listener: socket.socket, token: str) -> None:
        self._listener, self._token = listener, token
        self._listener.setblocking(False)
        self._wakeup = WakeupPipe()
        self._selector = selectors.DefaultSelector()
        for source in (self._listener, self._wakeup):
            self._selector.register(source, selectors.EVENT_READ)
        self._members: dict[Connection, Member | None] = {}  # None: it has not shown the token yet
        self._self = Member(0, socket.gethostname(), os.getpid(), time.monotonic())
        self._received: Diagnosis | None = None

    def wake(self) -> None:
        self._wakeup.wake()

    def exchange(self, status: Status, timeouts: Timeouts, seconds: float) -> Diagnosis | None:
        self._self.status = status
        self._send(heartbeat=True)
        deadline = time.monotonic() + seconds
        while True:
            is_woken = self._receive(max(deadline - time.monotonic(), 0))
            # This process may have been stopped during the wait. What the others sent meanwhile must count before the time does.
            is_woken |= self._receive(0)
            diagnosis = self._received or self._diagnose(timeouts)
            if diagnosis or is_woken or time.monotonic() >= deadline:
                return diagnosis

    def _diagnose(self, timeouts: Timeouts) -> Diagnosis | None:
        self._self.heard_at = time.monotonic()
        members = [self._self, *(member for member in self._members.values() if member)]
        return diagnose(sorted(members, key=lambda member: member.rank), time.monotonic(), timeouts)

    def send_diagnosis(self, diagnosis: Diagnosis) -> None:
        self._send(**diagnosis_message(diagnosis))
        self._end_sending()
        deadline = time.monotonic() + SECONDS_TO_DELIVER
        while any(connection.is_open for connection in self._members) and (left := deadline - time.monotonic()) > 0:
            self._receive(left)

    def send_goodbye(self, error: str, is_shared: bool) -> None:
        self._send(**goodbye_message(error, is_shared))
        self._end_sending()

    def _send(self, **message: Any) -> None:
        for connection in self._members:
            if connection.is_open:
                connection.send(**message)

    def _end_sending(self) -> None:
        for connection in self._members:
            connection.end_sending()

    def _receive(self, seconds: float) -> bool:
        """Receive what comes first, waiting so long for it. Return True if `wake` was called."""
        is_woken = False
        for key, _ in self._selector.select(seconds):
            if key.fileobj is self._listener:
                self._accept()
            elif key.fileobj is self._wakeup:
                self._wakeup.clear()
                is_woken = True
            elif isinstance(key.fileobj, Connection):
                self._read(key.fileobj)
        return is_woken

    def _accept(self) -> None:
        try:
            endpoint, _ = self._listener.accept()
        except OSError:
            return
        connection = Connection(endpoint)
        self._members[connection] = None
        self._selector.register(connection, selectors.EVENT_READ)

    def _read(self, connection: Connection) -> None:
        try:
            for message in connection.receive():
                diagnosis = read_message(message, self._sender(connection, message))
                self._received = self._received or diagnosis
        except (ValueError, KeyError, TypeError):  # the other side is no rank of this run
            self._drop(connection)
            return
        if not connection.is_open:
            if member := self._members[connection]:
                member.is_disconnected = True
            self._selector.unregister(connection)

    def _drop(self, connection: Connection) -> None:
        self._selector.unregister(connection)
        del self._members[connection]
        connection.close()

    def _sender(self, connection: Connection, message: dict[str, Any]) -> Member:
        """Return who sent the message. The first message of a connection must hold the token: else this raises KeyError or ValueError."""
        if (member := self._members[connection]) is None:
            if not hmac.compare_digest(str(message["token"]), self._token):
                raise ValueError("the token is wrong")
            member = self._members[connection] = Member(int(message["rank"]), str(message["host"]), int(message["pid"]), 0.0)
        return member


def listen(environment: Mapping[str, str]) -> tuple[Server, Address]:
    """Return rank 0's transport, and the address at which the other ranks reach it.

    `environment` holds the launcher's MASTER_ADDR. The server listens on the loopback interface alone if that is this machine,
    and on all networks otherwise.
    """
    master, token = environment["MASTER_ADDR"], secrets.token_hex(16)
    if master in ("127.0.0.1", "localhost"):
        listener = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
    elif socket.has_dualstack_ipv6():
        listener = socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=BACKLOG)
    else:
        listener = socket.create_server(("", 0), backlog=BACKLOG)
    return Server(listener, token), Address(master, listener.getsockname()[1], token, socket.gethostname(), os.getpid())
