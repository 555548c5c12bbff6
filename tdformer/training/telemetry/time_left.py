"""Estimates how long a run will still take."""

from __future__ import annotations

import time


class TimeLeft:
    """Estimates from the pace since the first step of this process. That step is slow and left out. Evaluations and saves count."""

    def __init__(self, total_steps: int) -> None:
        self._total = total_steps
        self._first: tuple[int, float] | None = None

    def after(self, step: int) -> str:
        """Return text such as "2 h 13 min left". It is empty at the first call."""
        now = time.monotonic()
        if self._first is None:
            self._first = step, now
        done, elapsed = step - self._first[0], now - self._first[1]
        return f"{duration(elapsed / done * (self._total - step))} left" if done > 0 else ""


def duration(seconds: float) -> str:
    """Return a duration in its two largest units: 40 s, 13 min, 2 h 13 min, 3 d 4 h."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"
