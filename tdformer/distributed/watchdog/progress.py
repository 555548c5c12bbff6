"""Progress counts how far the main thread of this rank has come. The main thread writes it, the watchdog's thread reads it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tdformer.distributed.watchdog.stacks import is_in_collective, place_of_main_thread

STARTING, TRAINING = "starting", "training"


@dataclass(frozen=True)
class Status:
    """A rank sends this to the others about once a second."""

    collectives: int = 0
    """This counts the collective operations that were entered plus those that were left.

    Where ranks wait for one another, the others wait for the rank with the smallest number.
    """
    idle_s: float = 0.0
    """Seconds since `collectives` last changed or a phase began or ended."""
    phase: str = STARTING
    is_slow: bool = True
    """True if the phase may take watchdog.slow_timeout_s."""
    place: str = ""
    """The main thread is here: file, line and function."""
    in_collective: bool = False
    """True if the main thread is inside a collective operation. Those that torch or DeepSpeed start by themselves count too."""


class Progress:
    """This counts what a Status reports. Each collective operation and each change of phase is progress."""

    def __init__(self) -> None:
        self._collectives, self._phase, self._is_slow = 0, STARTING, True
        self._advanced_at = time.monotonic()
        self.on_phase: Callable[[], object] = lambda: None
        """It is called at each change of phase. The other ranks must know it at once, since it decides which timeout counts."""

    def enter_phase(self, phase: str) -> None:
        """Begin a phase in which the usual timeout holds. The main thread calls this once, when training begins."""
        self._change_phase(phase, False)

    @contextmanager
    def slow_phase(self, phase: str) -> Iterator[None]:
        """Wrap something that may take watchdog.slow_timeout_s, such as saving."""
        before = self._phase, self._is_slow
        self._change_phase(phase, True)
        try:
            yield
        finally:
            self._change_phase(*before)

    def alive(self) -> None:
        """Say that the main thread goes on, while it waits for something outside of this run."""
        self._advance()

    @contextmanager
    def collective(self) -> Iterator[None]:
        """Wrap a collective operation. Other threads than the main one are not counted: they do not show how far it has come."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._collectives += 1
        self._advance()
        try:
            yield
        finally:
            self._collectives += 1
            self._advance()

    def status(self) -> Status:
        """Return the main thread's current status. Another thread calls this."""
        place = place_of_main_thread()
        in_collective = bool(self._collectives % 2) or is_in_collective(threading.main_thread())
        return Status(self._collectives, time.monotonic() - self._advanced_at, self._phase, self._is_slow, place, in_collective)

    def _change_phase(self, phase: str, is_slow: bool) -> None:
        self._phase, self._is_slow = phase, is_slow
        self._advance()
        self.on_phase()

    def _advance(self) -> None:
        self._advanced_at = time.monotonic()
