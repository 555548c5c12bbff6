"""Says which signals a process may answer. Imports no torch."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator


def heeded(signals: Iterable[signal.Signals]) -> Iterator[signal.Signals]:
    """Leave out SIGHUP if this process was started so that it ignores it, as nohup does: it shall live on without its terminal."""
    for number in signals:
        if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            yield number
