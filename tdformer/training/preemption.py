"""Being told to stop: a signal sets a flag, the loop asks for it at the step border, nothing is saved inside a handler."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class StopFlag:
    """Set by the first stop signal that this process receives."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.signal = self.signal or signal.Signals(number)


@contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """Inside, stop signals only set the flag. Repeated ones change nothing: a launcher may forward what a terminal also sent."""
    flag = StopFlag()
    previous = {number: signal.signal(number, flag._receive) for number in STOP_SIGNALS}
    try:
        yield flag
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
