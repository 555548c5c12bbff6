"""Measures the seconds until training has its first batch.

It does so at the beginning and in the middle of an epoch, on a small set and on a set with as many samples as ImageNet.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np

from data_pipelines.config import DataConfig
from data_pipelines.formats.ffcv_joiner import join_parts
from data_pipelines.formats.ffcv_writer import FfcvPart, FfcvSample, write_part
from data_pipelines.formats.index import Index, save_index
from data_pipelines.formats.wds_writer import shard_name
from data_pipelines.loading.dataloader import train_batches, train_sampler
from data_pipelines.loading.dataset import DataSet
from data_pipelines.loading.open_dataset import open_dataset
from data_pipelines.storage.shard_info import ShardInfo
from tdformer.bench.loader_pipelines import IMAGE_SIZE, LoaderSetting, Sets

IMAGENET_SAMPLES = 1_281_167
MEASURED_SETS = 4
"""The number of sets that are measured: both formats in both sizes."""


@dataclass(frozen=True)
class Startup:
    """Median seconds over the rounds for one set, in a process that has imported everything."""

    pipeline: str
    samples: int
    open_s: float
    """Seconds to open the set."""
    first_batch_s: float
    """Seconds from the call of `train_batches` to the first batch of a new run."""
    first_batch_after_resume_s: float
    """Seconds from the call of `train_batches` to the first batch of a run that resumes in the middle of an epoch."""


def measure_startup(
    sets: Sets,
    setting: LoaderSetting,
    rounds: int,
    folder: Path,
    *,
    samples: int = IMAGENET_SAMPLES,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Startup]:
    """Measure the startup on `sets`, and on enlarged sets with this many samples.

    folder: an empty folder, in which the enlarged sets are made.
    progress: it is called with 1 after each of MEASURED_SETS in each round.
    """
    large = {"wds": _enlarged_wds, "ffcv": _enlarged_ffcv}
    small = {"wds": sets.opened["original"], "ffcv": sets.opened["proportion"]}
    folders = [(name, Path(small[name].location)) for name in large]
    for name, enlarge in large.items():
        (folder / name).mkdir()
        enlarge(small["wds"], folder / name, samples)
        folders.append((name, folder / name))
    times: dict[tuple[str, Path], list[tuple[float, float, float]]] = {each: [] for each in folders}
    for _ in range(rounds):
        for name, at in folders:
            times[name, at].append(_measure_once(at, setting))
            progress(1)
    return [
        Startup(name, len(open_dataset(at)), *(median(column) for column in zip(*seconds, strict=True)))
        for (name, at), seconds in times.items()
    ]


def _measure_once(folder: Path, setting: LoaderSetting) -> tuple[float, float, float]:
    started = time.perf_counter()
    data = open_dataset(folder)
    opened = time.perf_counter() - started
    config = DataConfig(train=data.location, val=data.location, image_size=IMAGE_SIZE, workers=setting.workers)
    sampler = train_sampler(config, data, seed=0, global_batch=setting.batch, micro_batch=setting.batch, rank=0, world_size=1)

    def first_batch(step: int) -> float:
        called = time.perf_counter()
        with closing(train_batches(config, data, sampler, step, step + 1000)) as batches:
            next(batches)
            return time.perf_counter() - called

    return opened, first_batch(0), first_batch(sampler.steps_per_epoch // 2)


def _enlarged_wds(data: DataSet, folder: Path, samples: int) -> None:
    """Write a set with this many samples. Its shards are links to the shards of `data`, repeated as often as needed."""
    shards, rows = data.manifest.shards, data.index.rows[np.arange(samples) % len(data)]
    rows["shard"] += np.arange(samples) // len(data) * len(shards)
    filled = np.bincount(rows["shard"]).tolist()
    links = []
    for number, count in enumerate(filled):
        original = shards[number % len(shards)]
        (folder / shard_name(number)).symlink_to((Path(data.location) / original.name).absolute())
        links.append(ShardInfo(shard_name(number), count, original.bytes, original.sha256))
    save_index(folder, links, Index(rows))
    replace(data.manifest, shards=links, blocks=filled).write(folder)


def _enlarged_ffcv(data: DataSet, folder: Path, samples: int) -> None:
    """Write an FFCV file with this many samples, which share the pixels of at most 256 stored samples."""
    few = range(min(len(data), 256))
    stored = (FfcvSample(data.index.key_of(n), data.index.label_of(n), np.asarray(data.read(n)), n % 2 == 0) for n in few)
    pages, again = folder / "pages", np.arange(samples) % len(few)
    part = write_part(pages, stored, max_side=500, quality=90)
    allocations = part.allocations[again]
    allocations["sample_id"] = np.arange(samples)
    shard, index = join_parts(folder, [(pages, FfcvPart(part.metadata[again], allocations, part.keys[again]))], 500)
    pages.unlink()
    save_index(folder, [shard], index)
    blocks = [min(1000, samples - start) for start in range(0, samples, 1000)]
    replace(data.manifest, format="ffcv", shards=[shard], blocks=blocks).write(folder)
