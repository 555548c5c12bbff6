"""How the ranks hear of one another: all others have a connection to rank 0, which judges; they judge rank 0 by its silence.

Not torch's key-value store: its calls wait for a process that was stopped, and it does not tell that one died. Here the end of a
connection does, at once.
"""

from __future__ import annotations

import hmac
import math
import os
import secrets
import select
import selectors
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from data_pipelines.errors import UserError
from tdformer.distributed.watchdog.line import Line
from tdformer.distributed.watchdog.progress import Status
from tdformer.distributed.watchdog.verdict import Limits, Member, Verdict, judge, silence

SECONDS_TO_CONNECT = 60.0
SECONDS_TO_DELIVER = 3.0
BACKLOG = 4096
"""Ranks that connect at the same moment."""


@dataclass(frozen=True)
class Address:
    """Where rank 0 listens. The token keeps strangers out."""

    host: str
    port: int
    token: str
    hostname: str
    """What rank 0's machine calls itself."""
    pid: int

    @property
    def member(self) -> Member:
        return Member(0, self.hostname, self.pid, time.monotonic())


class Post(Protocol):
    def turn(self, status: Status, limits: Limits, seconds: float) -> Verdict | None:
        """Tell the others how this rank is, hear for up to `seconds` how they are, and judge."""

    def pass_on(self, verdict: Verdict) -> None:
        """Tell the others. Takes SECONDS_TO_DELIVER at most."""

    def leave(self, error: str, is_shared: bool) -> None:
        """Tell the others that this rank leaves in good order: with its work done, or with an error."""

    def wake(self) -> None:
        """End the wait in `turn`. Called by another thread."""


class _Waking:
    """A pipe that ends a wait."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()

    def fileno(self) -> int:
        return self._read

    def wake(self) -> None:
        os.write(self._write, b"x")

    def clear(self) -> None:
        os.read(self._read, 4096)


class Hub:
    """Rank 0's post."""

    def __init__(self, server: socket.socket, token: str) -> None:
        self._server, self._token = server, token
        self._server.setblocking(False)
        self._waking = _Waking()
        self._selector = selectors.DefaultSelector()
        for source in (self._server, self._waking):
            self._selector.register(source, selectors.EVENT_READ)
        self._lines: dict[Line, Member | None] = {}
        self._own = Member(0, socket.gethostname(), os.getpid(), time.monotonic())
        self._verdict: Verdict | None = None

    def wake(self) -> None:
        self._waking.wake()

    def turn(self, status: Status, limits: Limits, seconds: float) -> Verdict | None:
        self._own.status = status
        self._send(beat=True)
        self._hear(seconds)
        self._hear(0)  # if this very process was stopped while it waited, what was sent meanwhile comes first
        self._own.heard = time.monotonic()
        members = [self._own, *(member for member in self._lines.values() if member)]
        return self._verdict or judge(sorted(members, key=lambda member: member.rank), time.monotonic(), limits)

    def pass_on(self, verdict: Verdict) -> None:
        self._send(verdict=asdict(verdict))
        for line in self._lines:
            line.end_sending()
        deadline = time.monotonic() + SECONDS_TO_DELIVER
        while any(line.is_open for line in self._lines) and (left := deadline - time.monotonic()) > 0:
            self._hear(left)

    def leave(self, error: str, is_shared: bool) -> None:
        self._send(bye=error, is_shared=is_shared)
        for line in self._lines:
            line.end_sending()

    def _send(self, **message: Any) -> None:
        for line in self._lines:
            if line.is_open:
                line.send(**message)

    def _hear(self, seconds: float) -> None:
        for key, _ in self._selector.select(seconds):
            if key.fileobj is self._server:
                self._accept()
            elif key.fileobj is self._waking:
                self._waking.clear()
            elif isinstance(key.fileobj, Line):
                self._read(key.fileobj)

    def _accept(self) -> None:
        try:
            connection, _ = self._server.accept()
        except OSError:
            return
        line = Line(connection)
        self._lines[line] = None
        self._selector.register(line, selectors.EVENT_READ)

    def _read(self, line: Line) -> None:
        try:
            for message in line.receive():
                self._take(line, message)
        except (ValueError, KeyError, TypeError):  # not one of ours
            self._forget(line)
            return
        if not line.is_open:
            if member := self._lines[line]:
                member.is_lost = True
            self._selector.unregister(line)

    def _forget(self, line: Line) -> None:
        self._selector.unregister(line)
        del self._lines[line]
        line.close()

    def _take(self, line: Line, message: dict[str, Any]) -> None:
        if (member := self._lines[line]) is None:
            if not hmac.compare_digest(str(message["token"]), self._token):
                raise ValueError("not a rank of this run")
            member = self._lines[line] = Member(int(message["rank"]), str(message["host"]), int(message["pid"]), 0.0)
        member.heard = time.monotonic()
        if "status" in message:
            member.status = Status(**message["status"])
        if "bye" in message:
            member.ended, member.error, member.is_shared = member.heard, message["bye"], message["is_shared"]
        if "verdict" in message:
            self._verdict = self._verdict or verdict_of(message["verdict"])


class Spoke:
    """The post of any other rank."""

    def __init__(self, rank: int, hub: Address) -> None:
        self._rank, self._hub = rank, hub.member
        self._waking = _Waking()
        self._line = Line(socket.create_connection((hub.host, hub.port), timeout=SECONDS_TO_CONNECT))
        self._line.send(rank=rank, host=socket.gethostname(), pid=os.getpid(), token=hub.token)

    def wake(self) -> None:
        self._waking.wake()

    def turn(self, status: Status, limits: Limits, seconds: float) -> Verdict | None:
        self._line.send(status=asdict(status))
        verdict = self._hear(seconds) or self._hear(0)  # twice: see Hub.turn
        if verdict is None and self._hub.ended is None and time.monotonic() - self._hub.heard > (limit := limits.of(status)):
            verdict = Verdict("silent", (0,), silence(str(self._hub), limit), by=self._rank)
        if verdict is None and (found := judge([self._hub], time.monotonic(), Limits(math.inf, math.inf))):
            verdict = replace(found, by=self._rank)
        return verdict

    def pass_on(self, verdict: Verdict) -> None:
        if verdict.by == self._rank:
            self._line.send(verdict=asdict(verdict))
        self._line.end_sending()

    def leave(self, error: str, is_shared: bool) -> None:
        self._line.send(bye=error, is_shared=is_shared)
        self._line.end_sending()

    def _hear(self, seconds: float) -> Verdict | None:
        sources: list[Any] = [self._waking, self._line] if self._line.is_open else [self._waking]
        readable, _, _ = select.select(sources, [], [], seconds)
        if self._waking in readable:
            self._waking.clear()
        if self._line not in readable:
            return None
        for message in self._line.receive():
            self._hub.heard = time.monotonic()
            if "bye" in message:
                self._hub.ended, self._hub.error, self._hub.is_shared = self._hub.heard, message["bye"], message["is_shared"]
            if "verdict" in message:
                return verdict_of(message["verdict"])
        self._hub.is_lost = not self._line.is_open
        return None


def verdict_of(message: dict[str, Any]) -> Verdict:
    return Verdict(message["kind"], tuple(message["ranks"]), message["text"], message["by"])


def host(environment: Mapping[str, str]) -> tuple[Hub, Address]:
    """Rank 0's post, and where the others find it. Listens on all networks, unless the run is on this machine alone."""
    master, token = environment["MASTER_ADDR"], secrets.token_hex(16)
    if master in ("127.0.0.1", "localhost"):
        server = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
    elif socket.has_dualstack_ipv6():
        server = socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=BACKLOG)
    else:
        server = socket.create_server(("", 0), backlog=BACKLOG)
    return Hub(server, token), Address(master, server.getsockname()[1], token, socket.gethostname(), os.getpid())


def connect(rank: int, hub: Address) -> Spoke:
    """Raises UserError if rank 0 cannot be reached."""
    try:
        return Spoke(rank, hub)
    except OSError as error:
        raise UserError(
            f"rank {rank} cannot reach rank 0 at {hub.host}:{hub.port} ({error}); let the machines of a run reach each other's ports."
        ) from None
