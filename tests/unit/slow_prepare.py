"""Prepares a data set slowly, as a process of its own that test_prepare.py kills, or gives too little disk space."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from data_pipelines.formats.manifest import Format
from data_pipelines.formats.sample import RawSample
from data_pipelines.prepare.options import Encoding, PrepareOptions
from data_pipelines.prepare.prepare_dataset import prepare_dataset
from tests.unit.conftest import CLASSES, MemorySource, noise_png

SAMPLES, PER_SHARD = 40, 4


class SlowSource(MemorySource):
    """A source that waits before each sample."""

    wait = 0.0

    def __getitem__(self, index: int) -> RawSample:
        time.sleep(self.wait)
        return super().__getitem__(index)


class Slow(SlowSource):
    wait = 0.1


def pictures(kind: type[MemorySource] = MemorySource) -> MemorySource:
    return kind([RawSample(f"picture-{number:02d}", "png", noise_png(number, 16), number % len(CLASSES)) for number in range(SAMPLES)])


def plan(format: Format, seed: int = 0) -> PrepareOptions:
    return PrepareOptions(Encoding(format, mode="proportion", max_side=64), PER_SHARD, seed)


if __name__ == "__main__":
    prepare_dataset(pictures(Slow), Path(sys.argv[1]), plan(sys.argv[2]), processes=int(sys.argv[3]))  # type: ignore[arg-type]
