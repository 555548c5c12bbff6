"""The transport carries messages between the watchdogs of a run: every other rank has one TCP connection to rank 0.

Rank 0 diagnoses all ranks. The others diagnose rank 0 only, by its silence or the end of the connection.

torch's key-value store cannot do this: its calls block if the process at the other end was stopped, and it does not report a process
that died. The end of a TCP connection does so at once.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from tdformer.distributed.watchdog.diagnosis import Diagnosis, Member, Timeouts
from tdformer.distributed.watchdog.progress import Status


@dataclass(frozen=True)
class Address:
    """Rank 0 listens here."""

    host: str
    port: int
    token: str
    """A connection must send this secret first. It keeps out programs that do not belong to the run."""
    hostname: str
    """Rank 0's machine has this name for itself."""
    pid: int

    def member(self) -> Member:
        """Return rank 0 as the other ranks know it at the start."""
        return Member(0, self.hostname, self.pid, time.monotonic())


class Transport(Protocol):
    """The watchdog's thread uses this interface. server.py implements it for rank 0, client.py for the others."""

    def exchange(self, status: Status, timeouts: Timeouts, seconds: float) -> Diagnosis | None:
        """Send this rank's status once, receive messages for `seconds`, and return a diagnosis as soon as a rank failed.

        The answer to a message waits for the next call: otherwise two ranks would answer each other without end.
        """

    def send_diagnosis(self, diagnosis: Diagnosis) -> None:
        """Send the diagnosis to the ranks that do not know it yet. Takes server.SECONDS_TO_DELIVER at most."""

    def send_goodbye(self, error: str, is_shared: bool) -> None:
        """Tell the others that this rank leaves. An empty error means that its work is done. `is_shared`: see Member."""

    def wake(self) -> None:
        """End the wait in `exchange` early. Another thread calls this."""


def diagnosis_message(diagnosis: Diagnosis) -> dict[str, Any]:
    """Return the message that carries a diagnosis."""
    return {"diagnosis": asdict(diagnosis)}


def goodbye_message(error: str, is_shared: bool) -> dict[str, Any]:
    """Return the message with which a rank leaves."""
    return {"goodbye": error, "is_shared": is_shared}


def read_message(message: dict[str, Any], sender: Member) -> Diagnosis | None:
    """Note what a message says about its sender. Returns the diagnosis that it carries, if any.

    Raises KeyError or TypeError if the message is malformed.
    """
    sender.heard_at = time.monotonic()
    if "status" in message:
        sender.status = Status(**message["status"])
    if "goodbye" in message:
        sender.left_at, sender.error, sender.is_shared = sender.heard_at, message["goodbye"], message["is_shared"]
    if "diagnosis" not in message:
        return None
    found = message["diagnosis"]
    return Diagnosis(found["kind"], tuple(found["failed_ranks"]), found["text"], found["found_by"])
