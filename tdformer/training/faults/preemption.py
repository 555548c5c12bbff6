"""Notices that a run must stop: a signal, a deadline, or data that cannot be read now sets a flag.

The training loop reads the flag between two steps. Nothing is saved inside a signal handler.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

import psutil

from tdformer.config import PreemptionConfig
from tdformer.distributed.stop_signals import heeded

JOB_END = "SLURM_JOB_END_TIME"
"""The variable in which Slurm gives the end of a job, in seconds since 1970."""


class StopFlag:
    """Is true from the first stop signal on that this process receives, from its deadline on, and from a fault on that will pass."""

    def __init__(self, deadline: float = float("inf"), deadline_reason: str = "") -> None:
        """deadline: in seconds since 1970, as time.time() gives them."""
        self.signal: signal.Signals | None = None
        self._deadline, self._deadline_reason = deadline, deadline_reason
        self._fault = ""

    def __bool__(self) -> bool:
        return bool(self.reason)

    @property
    def reason(self) -> str:
        """Return what stops the run, as text that follows "stopped by". Empty if nothing does."""
        if self.signal is not None:
            return self.signal.name
        return self._deadline_reason if time.time() >= self._deadline else self._fault

    def set_for(self, fault: str) -> None:
        """Stop the run because of something that will pass, so that its state is saved and it can be resumed."""
        self._fault = fault

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.signal = self.signal or signal.Signals(number)


@contextmanager
def stopping(config: PreemptionConfig) -> Iterator[StopFlag]:
    """Make stop signals only set the flag inside. Repeated signals change nothing: a launcher may forward what a terminal also sent."""
    flag = StopFlag(*deadline(config, psutil.Process().create_time(), os.environ))
    previous = {number: signal.signal(number, flag._receive) for number in heeded(map(signal.Signals.__getitem__, config.signals))}
    try:
        yield flag
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def deadline(config: PreemptionConfig, started: float, environment: Mapping[str, str]) -> tuple[float, str]:
    """Return when a process that started at `started` must stop, and why.

    Both times are in seconds since 1970. The deadline is infinite if there is none.
    """
    deadlines = [(float("inf"), "")]
    if config.max_minutes is not None:
        deadlines.append((started + 60 * config.max_minutes, f"its deadline of {config.max_minutes:g} minutes"))
    if config.minutes_before_end is not None and environment.get(JOB_END, "").isdigit():
        end = int(environment[JOB_END])
        margin = min(60 * config.minutes_before_end, (end - started) / 2)  # otherwise a short job would stop as soon as it starts
        deadlines.append((end - margin, f"the end of its Slurm job in {margin / 60:.2g} minutes"))
    return min(deadlines)
