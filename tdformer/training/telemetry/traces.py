"""Profiler traces of chosen training steps."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


class Traces:
    """Records the steps from first to last, and writes them as one Chrome trace (for Perfetto) into a folder: steps-2-4.json.

    steps: first and last; None for no trace.
    """

    def __init__(self, steps: tuple[int, int] | None, folder: Path) -> None:
        self._steps, self._folder = steps, folder
        self._profiler: profile | None = None
        self._first = 0

    def begin_step(self, step: int) -> None:
        if self._steps is not None and self._profiler is None and self._steps[0] <= step <= self._steps[1]:
            self._first = step
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")
            gpu = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
            self._profiler = profile(activities=[ProfilerActivity.CPU, *gpu])
            self._profiler.start()

    def end_step(self, step: int) -> Path | None:
        """Return the path of the trace if this step ended one. A trace that cannot be written is a warning."""
        if self._profiler is None or self._steps is None or step < self._steps[1]:
            return None
        profiler, self._profiler = self._profiler, None
        profiler.stop()
        path = self._folder / f"steps-{self._first}-{step}.json"
        try:
            self._folder.mkdir(exist_ok=True)
            profiler.export_chrome_trace(str(path))
        except OSError as error:
            print(f"warning: {path} cannot be written ({error.strerror}).", file=sys.stderr)
            return None
        return path

    def close(self) -> None:
        """Drop a recording that has not come to its last step."""
        if self._profiler is not None:
            self._profiler.stop()
            self._profiler = None
