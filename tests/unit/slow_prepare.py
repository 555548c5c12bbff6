"""Prepares a data set slowly, as a process of its own that test_prepare.py kills, or gives too little disk space."""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

from data_pipelines.errors import UserError
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


def main() -> None:
    """Prepare the data set. With a limit, do it at once on a disk that takes no longer file, and print what becomes of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("format")
    parser.add_argument("processes", type=int)
    parser.add_argument("--limit", type=int, help="bytes that a file may have")
    given = parser.parse_args()
    if given.limit is None:
        prepare_dataset(pictures(Slow), given.folder, plan(given.format), processes=given.processes)
        return
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (given.limit, limits[1]))
    try:
        prepare_dataset(pictures(), given.folder, plan(given.format), processes=given.processes)
        outcome = "written"
    except UserError as error:
        outcome = str(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)  # the output is a file, too
    print(outcome)


if __name__ == "__main__":
    main()
