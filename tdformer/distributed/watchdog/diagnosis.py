"""A diagnosis names the ranks that failed. It is a pure function of what all ranks last sent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from tdformer.distributed.watchdog.progress import Status

EXIT_PEER_LOST = 69
"""A rank ends with this exit code because another one died or hangs. sysexits.h calls it EX_UNAVAILABLE."""
SECONDS_TO_FOLLOW = 5.0
"""If a rank ends with an error that all ranks should have, the others get this long to end with it by themselves."""
SECONDS_UNHEARD = 5.0
"""After this long without a message, a rank's last status is too old to use. Only its silence counts then."""

Kind = Literal["died", "failed", "silent", "stuck"]


class PeerLostError(RuntimeError):
    """Another rank died or hangs, so this rank cannot go on. The text is empty if the user has been told already."""


@dataclass(frozen=True)
class Timeouts:
    """A rank may go this many seconds without progress. math.inf turns a timeout off. The defaults are [our choice]."""

    usual_s: float = 600.0
    slow_s: float = 1800.0

    @classmethod
    def from_config(cls, timeout_s: float | None, slow_timeout_s: float | None) -> Timeouts:
        """Translate the two values of the configuration's `watchdog` section, where null means never."""
        return cls(*(math.inf if seconds is None else seconds for seconds in (timeout_s, slow_timeout_s)))

    def for_status(self, status: Status) -> float:
        """Return the timeout in seconds that holds in this status."""
        return self.slow_s if status.is_slow else self.usual_s


@dataclass
class Member:
    """This is what a process knows of one rank of the run. Times are values of this process's time.monotonic()."""

    rank: int
    host: str
    pid: int
    heard_at: float
    """The last message arrived at this time."""
    status: Status = field(default_factory=Status)
    is_disconnected: bool = False
    """True if the connection has ended."""
    left_at: float | None = None
    """The rank said at this time that it leaves. None: it has not said so."""
    error: str = ""
    """The rank leaves because of this error. Empty if its work is done."""
    is_shared: bool = False
    """True if all ranks should have this error, because a user's mistake caused it."""

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.pid} on {self.host})"


@dataclass(frozen=True)
class Diagnosis:
    """This says which ranks failed, and how."""

    kind: Kind
    failed_ranks: tuple[int, ...]
    text: str
    """One clause for the user, without a full stop."""
    found_by: int = 0
    """This rank made the diagnosis."""

    @property
    def is_hang(self) -> bool:
        """Return True if the failed ranks still exist, so that their main threads cannot be expected to react."""
        return self.kind in ("silent", "stuck")


def diagnose(members: Sequence[Member], now: float, timeouts: Timeouts) -> Diagnosis | None:
    """Return which ranks failed, or None while all is well. `now` is the current time.monotonic()."""
    return _diagnose_ended(members, now) or _diagnose_running([member for member in members if member.left_at is None], now, timeouts)


def silence(member: Member, timeout_s: float) -> str:
    """Return the clause about a rank that sends nothing."""
    return f"{member} has not answered for {timeout_s:g} s (it was stopped, its machine is gone, or one call holds the whole process)"


def _diagnose_ended(members: Sequence[Member], now: float) -> Diagnosis | None:
    for member in members:
        if member.is_disconnected and member.left_at is None:
            return Diagnosis("died", (member.rank,), f"{member} died or was cut off")
        if member.error and now - (member.left_at or now) >= (SECONDS_TO_FOLLOW if member.is_shared else 0.0):
            return Diagnosis("failed", (member.rank,), f"{member} ended with an error: {member.error}")
    return None


def _diagnose_running(running: list[Member], now: float, timeouts: Timeouts) -> Diagnosis | None:
    for member in running:
        timeout_s = timeouts.for_status(member.status)
        if now - member.heard_at > timeout_s:
            return Diagnosis("silent", (member.rank,), silence(member, timeout_s))
    if any(now - member.heard_at > SECONDS_UNHEARD for member in running):
        return None
    return _diagnose_stuck(running, timeouts)


def _diagnose_stuck(running: list[Member], timeouts: Timeouts) -> Diagnosis | None:
    """Name the ranks that the others wait for, once these have made no progress for their timeout."""
    fewest = min((member.status.collectives for member in running), default=0)
    last = [member for member in running if member.status.collectives == fewest]
    last = [member for member in last if not member.status.in_collective] or last
    if not last or any(member.status.idle_s <= timeouts.for_status(member.status) for member in last):
        return None
    timeout_s = max(timeouts.for_status(member.status) for member in last)
    places = "; ".join(f"{member} while {member.status.phase}, at {member.status.place}" for member in last)
    others = "" if len(last) == len(running) else "; the others wait for it" if len(last) == 1 else "; the others wait for them"
    return Diagnosis("stuck", tuple(member.rank for member in last), f"no progress for {timeout_s:g} s of {places}{others}")
