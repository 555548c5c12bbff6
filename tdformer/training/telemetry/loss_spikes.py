"""Notices losses that lie far above the ones before them."""

from __future__ import annotations

import statistics
from collections import deque

SPIKE_WINDOW, SPIKE_DEVIATIONS = 100, 10.0
"""A loss is a spike if it lies 10 median absolute deviations above the median of the 100 losses before it [our choice]. Equal losses
have no deviation, and no spikes."""


class LossSpikes:
    """Watches the loss of every optimizer step. It only tells: what to do about a spike is the user's choice."""

    def __init__(self) -> None:
        self._losses: deque[float] = deque(maxlen=SPIKE_WINDOW)

    def add(self, loss: float) -> bool:
        """Take the loss of the next step, and tell whether it is a spike. The first SPIKE_WINDOW losses never are."""
        before = list(self._losses)
        self._losses.append(loss)
        if len(before) < SPIKE_WINDOW:
            return False
        median = statistics.median(before)
        deviation = statistics.median(abs(value - median) for value in before)
        return loss > median + SPIKE_DEVIATIONS * deviation > median
