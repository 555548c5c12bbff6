"""Measures images per second of the project's loaders, beside torchvision's ImageFolder and FFCV's own Loader.

The pipelines take turns, so that a machine that slows down slows all of them. In its turn a pipeline starts new workers and loads
until they are in step. Then as many images are measured as the set has. Files are in the page cache, so no disk is measured.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import NamedTuple

import psutil
import torch

from data_pipelines.errors import UserError
from data_pipelines.formats.turbojpeg import require_ffcv
from data_pipelines.loading.batch import Batch
from data_pipelines.loading.open_dataset import open_dataset
from data_pipelines.prepare.options import PrepareOptions
from data_pipelines.prepare.prepare_dataset import prepare_dataset
from data_pipelines.sources.folders import ImageFolderSource
from tdformer.bench.loader_pipelines import STORAGE, LoaderSetting, Pipeline, Sets, batches_of
from tdformer.bench.photographs import NAMES, write_photographs

CPU = torch.device("cpu")
THREADS = torch.get_num_threads()
"""The number of threads that torch chooses by itself. FFCV changes it to 1 at its import, and to its number of workers when it loads."""


@dataclass(frozen=True)
class Row:
    """Medians over the rounds for one pipeline."""

    pipeline: str
    storage: str
    transforms: str
    interpolation: str
    images_per_s: float
    images_per_s_min: float
    images_per_s_max: float
    cpu_s_per_image: float
    """User and system seconds per image, of this process and its workers together."""
    wait_share: float
    """Share of the time in which a consumer is blocked that only takes batches and normalises them. Near 1 the workers are the limit,
    near 0 this process is."""
    ratio_to_imagefolder: float
    """Images per second, divided by those of ImageFolder with the same transforms in the same round."""


class _Measurement(NamedTuple):
    """The result of one turn of one pipeline."""

    images_per_s: float
    cpu_s_per_image: float
    wait_share: float


def prepare_sets(folder: Path, images: int, *, processes: int = 1, progress: Callable[[int], None] = lambda done: None) -> Sets:
    """Generate the images and write them in every storage, unless they exist already. All files are in the page cache afterwards.

    progress: it is called with the number of images done since its last call. Each image counts `1 + len(STORAGE)` times.
    Raises UserError for too few images or without the package ffcv, DataError if the folder holds anything else.
    """
    if images < len(NAMES):
        raise UserError(f"--images must be at least {len(NAMES)}, one for each class, got {images}")
    require_ffcv()
    # `prepare_dataset` starts the helper process from which the loaders fork their workers too.
    multiprocessing.set_forkserver_preload(["data_pipelines.loading.micro_batches"])
    files = write_photographs(folder, images, processes=processes, progress=progress)
    source = ImageFolderSource(files)
    for name, storage in STORAGE.items():
        prepare_dataset(source, folder / name, PrepareOptions(storage), processes=processes, progress=progress)
    for path in folder.rglob("*.*"):
        if path.is_file():
            path.read_bytes()
    return Sets(files, {name: open_dataset(folder / name) for name in STORAGE})


def measure(
    sets: Sets,
    setting: LoaderSetting,
    rounds: int,
    pipelines: Sequence[Pipeline],
    *,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Row]:
    """Measure each pipeline once per round, and return one row for each.

    pipelines: for every transforms among them, the ImageFolder with these transforms must be there.
    progress: it is called with 1 after each measurement.
    """
    results: dict[Pipeline, list[_Measurement]] = {pipeline: [] for pipeline in pipelines}
    for _ in range(rounds):
        for pipeline in pipelines:
            results[pipeline].append(_measure_once(batches_of(pipeline, sets, setting), setting))
            progress(1)
    return [_row(pipeline, results[pipeline], results[_reference_of(pipeline)]) for pipeline in pipelines]


def _reference_of(pipeline: Pipeline) -> Pipeline:
    return Pipeline("imagefolder", "original", pipeline.transforms, "bicubic")


def _row(pipeline: Pipeline, results: list[_Measurement], of_reference: list[_Measurement]) -> Row:
    speeds = [result.images_per_s for result in results]
    ratio = median(own / reference.images_per_s for own, reference in zip(speeds, of_reference, strict=True))
    cpu, wait = median(result.cpu_s_per_image for result in results), median(result.wait_share for result in results)
    return Row(*pipeline, median(speeds), min(speeds), max(speeds), cpu, wait, ratio)


def _measure_once(batches: Generator[Batch | torch.Tensor, None, None], setting: LoaderSetting) -> _Measurement:
    with closing(batches):
        for _ in range(setting.ahead):
            _on_cpu(next(batches))
        torch.set_num_threads(THREADS)
        processes = [psutil.Process(), *(psutil.Process(child.pid) for child in multiprocessing.active_children())]
        cpu, started, waited = _cpu_seconds(processes), time.perf_counter(), 0.0
        for _ in range(setting.batches):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            _on_cpu(batch)
        wall, cpu = time.perf_counter() - started, _cpu_seconds(processes) - cpu
    images = setting.batches * setting.batch
    return _Measurement(images / wall, cpu / images, waited / wall)


def _on_cpu(batch: Batch | torch.Tensor) -> torch.Tensor:
    """Return normalised images [B, 3, 224, 224]. Batches of the project are normalised only when they reach their device."""
    images_BCHW = batch.to(CPU).images_BCHW if isinstance(batch, Batch) else batch
    assert images_BCHW.dtype == torch.float32
    assert images_BCHW.is_contiguous()
    return images_BCHW


def _cpu_seconds(processes: list[psutil.Process]) -> float:
    return sum(times.user + times.system for times in (process.cpu_times() for process in processes))
