"""`tdformer` in one process of a run, on a disk that is full at times.

    RANK=… WORLD_SIZE=… [FULL_AT=3,5 FULL_BYTES=1000] [FULL_FOR_METRICS_AT=2,3] python -m tests.faults.disk_worker train CONFIG …

Of the checkpoints of these steps no file can grow beyond so many bytes, and none of these steps' metrics fits metrics.jsonl beyond
ten bytes. The system refuses it (RLIMIT_FSIZE; no right to mount is needed) in the middle of a write, as a full disk does.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from launch import cli
from tdformer.checkpoint import store
from tdformer.checkpoint.train_state import Snapshot
from tdformer.rundir.metrics_file import MetricsFile
from tests.faults.numbers_worker import steps

really_write, really_append = store.write_files, MetricsFile.append


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def write(partial: Path, state: Snapshot, *rest: Any) -> None:
    if state.train_state.step not in steps("FULL_AT"):
        return really_write(partial, state, *rest)
    with files_of_at_most(int(os.environ["FULL_BYTES"])):
        really_write(partial, state, *rest)


def append(self: MetricsFile, step: int, *rest: Any) -> None:
    if step not in steps("FULL_FOR_METRICS_AT"):
        return really_append(self, step, *rest)
    with files_of_at_most(self.path.stat().st_size + 10):
        really_append(self, step, *rest)


def main() -> None:
    store.write_files = write
    MetricsFile.append = append  # type: ignore[method-assign]
    cli.main()


if __name__ == "__main__":
    main()
