"""Measures where the time of training steps goes, without making a GPU wait."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from typing import Literal

import torch

Part = Literal["data_wait", "forward", "backward", "communication", "optimizer"]
PARTS: tuple[Part, ...] = ("data_wait", "forward", "backward", "communication", "optimizer")

Mark = float | torch.cuda.Event


class Stopwatch:
    """Splits each step into parts. A part ends where the next one begins.

    On CUDA a border is an event in the stream, which is read when the GPU has long passed it. The parts are then the GPU's time: its work,
    and its wait for data. Elsewhere a border is a reading of the clock.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._laps: deque[tuple[Part, Mark, Mark]] = deque()
        self._open: tuple[Part, Mark] | None = None
        self._seconds: dict[Part, float] = defaultdict(float)
        self._steps = 0

    def enter(self, part: Part) -> None:
        """Count the time from now on for this part."""
        mark = self._mark()
        if self._open:
            self._laps.append((*self._open, mark))
        self._open = part, mark

    def end_step(self) -> None:
        assert self._open is not None
        self._laps.append((*self._open, self._mark()))
        self._open, self._steps = None, self._steps + 1
        while self._laps and _is_over(self._laps[0][2]):
            self._read()

    def take(self) -> dict[str, float]:
        """Return the mean seconds of each part per step since the last call, by name."""
        if self._laps:
            _wait_for(self._laps[-1][2])
        while self._laps:
            self._read()
        means = {f"time/{part}_s": self._seconds[part] / max(self._steps, 1) for part in PARTS}
        self._seconds.clear()
        self._steps = 0
        return means

    def _mark(self) -> Mark:
        if not self._on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _read(self) -> None:
        part, start, end = self._laps.popleft()
        self._seconds[part] += _seconds_between(start, end)


def _seconds_between(start: Mark, end: Mark) -> float:
    if isinstance(start, float) or isinstance(end, float):
        return float(end) - float(start)  # type: ignore[arg-type]
    return start.elapsed_time(end) / 1e3


def _is_over(mark: Mark) -> bool:
    return isinstance(mark, float) or mark.query()


def _wait_for(mark: Mark) -> None:
    if not isinstance(mark, float):
        mark.synchronize()
