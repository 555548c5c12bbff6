"""How far this rank's main thread has come: written by that thread, read by the watchdog's."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tdformer.distributed.watchdog.stacks import is_in_collective, place_of_main_thread

STARTING, TRAINING = "starting", "training"


@dataclass(frozen=True)
class Status:
    """What a rank tells the others about itself, about once a second."""

    meetings: int = 0
    """Collective operations entered plus those left: where ranks wait for one another, the smallest number is who they wait for."""
    idle_s: float = 0.0
    """Seconds since that number last changed, or a phase began or ended."""
    phase: str = STARTING
    is_slow: bool = True
    """Whether the phase may take watchdog.slow_timeout_s."""
    place: str = ""
    """Where the main thread is: file, line and function."""
    waits: bool = False
    """Whether it is inside a collective operation, one of torch's or DeepSpeed's own included."""


class Progress:
    """The counter behind a Status. Every meeting of the ranks moves it (see Ranks), and so does every change of phase."""

    def __init__(self) -> None:
        self._meetings, self._phase, self._is_slow = 0, STARTING, True
        self._moved = time.monotonic()

    def made(self) -> None:
        """Something was done that takes long by itself, without meeting the other ranks."""
        self._moved = time.monotonic()

    def enter(self, phase: str) -> None:
        """From here on the usual timeout holds. Called once, when training begins."""
        self._phase, self._is_slow = phase, False
        self.made()

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Around something that may take watchdog.slow_timeout_s, such as saving."""
        before = self._phase, self._is_slow
        self._phase, self._is_slow = phase, True
        self.made()
        try:
            yield
        finally:
            self._phase, self._is_slow = before
            self.made()

    @contextmanager
    def meeting(self) -> Iterator[None]:
        """Around a collective operation. Those of other threads than the main one say nothing about it."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._meetings += 1
        self.made()
        try:
            yield
        finally:
            self._meetings += 1
            self.made()

    def status(self) -> Status:
        """Of now, for a thread other than the main one to tell."""
        place = place_of_main_thread()
        waits = bool(self._meetings % 2) or is_in_collective(threading.main_thread())
        return Status(self._meetings, time.monotonic() - self._moved, self._phase, self._is_slow, place, waits)
