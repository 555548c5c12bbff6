"""Profiler traces of chosen training steps."""

from __future__ import annotations

from pathlib import Path

from torch.profiler import ProfilerActivity, profile

FOLDER = "traces"


class Traces:
    """Records steps first to last, and writes them as one Chrome trace (chrome://tracing, Perfetto): RUN/traces/steps-2-4.json."""

    def __init__(self, steps: tuple[int, int] | None, run_dir: Path) -> None:
        self._steps, self._folder = steps, run_dir / FOLDER
        self._profiler: profile | None = None
        self._first = 0

    def begin_step(self, step: int) -> None:
        if self._steps is not None and self._profiler is None and self._steps[0] <= step <= self._steps[1]:
            self._first = step
            self._profiler = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])
            self._profiler.start()

    def end_step(self, step: int) -> Path | None:
        """The file, when one was written just now."""
        if self._profiler is None or self._steps is None or step < self._steps[1]:
            return None
        profiler, self._profiler = self._profiler, None
        profiler.stop()
        self._folder.mkdir(exist_ok=True)
        path = self._folder / f"steps-{self._first}-{step}.json"
        profiler.export_chrome_trace(str(path))
        return path

    def close(self) -> None:
        """A recording that has not come to its last step is dropped."""
        if self._profiler is not None:
            self._profiler.stop()
            self._profiler = None
