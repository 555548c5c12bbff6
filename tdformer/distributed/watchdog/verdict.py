"""Which rank is to blame, by what is known of all of them: pure functions of their last messages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from tdformer.distributed.watchdog.progress import Status

EXIT_PEER_LOST = 69
"""Of every rank that leaves because another one died or hangs. (sysexits.h calls it EX_UNAVAILABLE.)"""
SECONDS_TO_FOLLOW = 5.0
"""After a rank ended with an error that all should have had: how long the others may take to end with it by themselves."""
SECONDS_UNHEARD = 5.0
"""A rank that was not heard for so long cannot be judged by its last status; it is judged by its silence."""

Kind = Literal["died", "failed", "silent", "stuck"]


class PeerLostError(RuntimeError):
    """Another rank died or hangs, so that this one cannot go on. Empty if that has been said."""


@dataclass(frozen=True)
class Limits:
    """Seconds; infinite: never."""

    usual_s: float = 600.0
    slow_s: float = 1800.0

    def of(self, status: Status) -> float:
        return self.slow_s if status.is_slow else self.usual_s


@dataclass
class Member:
    """What rank 0 knows of a rank. Times are this process's time.monotonic()."""

    rank: int
    host: str
    pid: int
    heard: float
    status: Status = field(default_factory=Status)
    is_lost: bool = False
    """Its connection ended without a word."""
    ended: float | None = None
    """When it said that it leaves."""
    error: str = ""
    """Why it leaves; empty if its work is done."""
    is_shared: bool = False
    """Whether all ranks should have this error (a user's mistake)."""

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.pid} on {self.host})"


@dataclass(frozen=True)
class Verdict:
    kind: Kind
    ranks: tuple[int, ...]
    """To blame."""
    text: str
    """One clause, without a full stop."""
    by: int = 0
    """The rank that found it."""

    @property
    def is_hang(self) -> bool:
        return self.kind in ("silent", "stuck")


def judge(members: Sequence[Member], now: float, limits: Limits) -> Verdict | None:
    """None while all is well."""
    for member in members:
        if member.is_lost and member.ended is None:
            return Verdict("died", (member.rank,), f"{member} died or was cut off")
        if member.error and now - (member.ended or now) >= (SECONDS_TO_FOLLOW if member.is_shared else 0.0):
            return Verdict("failed", (member.rank,), f"{member} ended with an error: {member.error}")
    running = [member for member in members if member.ended is None]
    for member in running:
        limit = limits.of(member.status)
        if now - member.heard > limit:
            return Verdict("silent", (member.rank,), silence(str(member), limit))
    if any(now - member.heard > SECONDS_UNHEARD for member in running):
        return None
    return _stuck(running, limits)


def silence(who: str, limit: float) -> str:
    return f"{who} has not answered for {limit:g} s (it was stopped, its machine is gone, or one call holds the whole process)"


def _stuck(running: list[Member], limits: Limits) -> Verdict | None:
    """Those that the others wait for, if they have not moved for their time."""
    least = min((member.status.meetings for member in running), default=0)
    last = [member for member in running if member.status.meetings == least]
    last = [member for member in last if not member.status.waits] or last
    if not last or any(member.status.idle_s <= limits.of(member.status) for member in last):
        return None
    limit = max(limits.of(member.status) for member in last)
    places = "; ".join(f"{member} while {member.status.phase}, at {member.status.place}" for member in last)
    others = "" if len(last) == len(running) else "; the others wait for it" if len(last) == 1 else "; the others wait for them"
    return Verdict("stuck", tuple(member.rank for member in last), f"no progress for {limit:g} s of {places}{others}")


def limits(timeout_s: float | None, slow_timeout_s: float | None) -> Limits:
    """From the configuration, where null means never."""
    return Limits(*(math.inf if seconds is None else seconds for seconds in (timeout_s, slow_timeout_s)))
