"""The client is any other rank's side of the transport: it sends its status to rank 0, and diagnoses rank 0 alone."""

from __future__ import annotations

import math
import os
import select
import socket
import time
from dataclasses import asdict, replace
from typing import Any

from data_pipelines.errors import UserError
from tdformer.distributed.watchdog.connection import Connection
from tdformer.distributed.watchdog.diagnosis import Diagnosis, Timeouts, diagnose, silence
from tdformer.distributed.watchdog.progress import Status
from tdformer.distributed.watchdog.transport import Address, diagnosis_message, goodbye_message, read_message
from tdformer.distributed.watchdog.wakeup import WakeupPipe

SECONDS_TO_CONNECT = 60.0


class Client:
    """This is the Transport of every rank but rank 0."""

    def __init__(self, rank: int, address: Address) -> None:
        self._rank, self._server = rank, address.member()
        self._wakeup = WakeupPipe()
        self._received: Diagnosis | None = None
        self._connection = Connection(socket.create_connection((address.host, address.port), timeout=SECONDS_TO_CONNECT))
        self._connection.send(rank=rank, host=socket.gethostname(), pid=os.getpid(), token=address.token)

    def wake(self) -> None:
        self._wakeup.wake()

    def exchange(self, status: Status, timeouts: Timeouts, seconds: float) -> Diagnosis | None:
        self._connection.send(status=asdict(status))
        deadline = time.monotonic() + seconds
        while True:
            is_woken = self._receive(max(deadline - time.monotonic(), 0))
            is_woken |= self._receive(0)  # see Server.exchange
            diagnosis = self._received or self._diagnose_server(timeouts.for_status(status))
            if diagnosis or is_woken or time.monotonic() >= deadline:
                return diagnosis

    def send_diagnosis(self, diagnosis: Diagnosis) -> None:
        if diagnosis.found_by == self._rank:
            self._connection.send(**diagnosis_message(diagnosis))
        self._connection.end_sending()

    def send_goodbye(self, error: str, is_shared: bool) -> None:
        self._connection.send(**goodbye_message(error, is_shared))
        self._connection.end_sending()

    def _receive(self, seconds: float) -> bool:
        """Receive what comes first, waiting so long for it. Return True if `wake` was called."""
        sources: list[Any] = [self._wakeup, self._connection] if self._connection.is_open else [self._wakeup]
        readable, _, _ = select.select(sources, [], [], seconds)
        if self._wakeup in readable:
            self._wakeup.clear()
        if self._connection in readable:
            for message in self._connection.receive():
                self._received = self._received or read_message(message, self._server)
            self._server.is_disconnected = not self._connection.is_open
        return self._wakeup in readable

    def _diagnose_server(self, timeout_s: float) -> Diagnosis | None:
        """Rank 0 sends heartbeats without a status, so that its silence is measured with this rank's own timeout."""
        if self._server.left_at is None and time.monotonic() - self._server.heard_at > timeout_s:
            return Diagnosis("silent", (0,), silence(self._server, timeout_s), found_by=self._rank)
        found = diagnose([self._server], time.monotonic(), Timeouts(math.inf, math.inf))
        return replace(found, found_by=self._rank) if found else None


def connect(rank: int, address: Address) -> Client:
    """Return the transport of rank `rank`. Raises UserError if rank 0 cannot be reached."""
    try:
        return Client(rank, address)
    except OSError as error:
        raise UserError(
            f"rank {rank} cannot reach rank 0 at {address.host}:{address.port} ({error}); "
            "let the machines of a run reach each other's ports."
        ) from None
