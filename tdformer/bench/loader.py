"""Images per second of the project's loaders, beside torchvision's ImageFolder and FFCV's own Loader.

Every pipeline gives batches of float32 images, normalised, [B, 3, 224, 224], on the CPU. They take turns, so that a machine
that slows down slows all of them; in its turn each starts new workers, loads until these are in step, and is then
measured over as many images as the set has. Files are in the page cache: no disk is measured.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

import numpy as np
import psutil
import torch
from timm.data import create_transform
from torch.utils.data import DataLoader, RandomSampler
from torchvision.datasets import ImageFolder

from data_pipelines.config import IMAGENET_MEAN, IMAGENET_STD, AugmentConfig, DataConfig
from data_pipelines.errors import UserError
from data_pipelines.formats.ffcv_joiner import FFCV_FILE
from data_pipelines.formats.turbojpeg import require_ffcv
from data_pipelines.loading.batch import Batch
from data_pipelines.loading.dataloader import train_batches, train_sampler
from data_pipelines.loading.dataset import DataSet
from data_pipelines.loading.open_dataset import open_dataset
from data_pipelines.prepare.options import Encoding, PrepareOptions
from data_pipelines.prepare.prepare_dataset import prepare_dataset
from data_pipelines.sources.folders import ImageFolderSource
from tdformer.bench.photographs import NAMES, write_photographs

CPU = torch.device("cpu")
THREADS = torch.get_num_threads()
"""torch's own choice, for the work of this process; FFCV sets it to 1 when it is imported, and to its workers' number when it loads."""
IMAGE_SIZE = 224

AUGMENT = {"crop+flip": AugmentConfig(), "recipe": AugmentConfig(auto_augment="rand-m9-mmax9-mstd0.5-inc1", erase=0.25)}
"""By the name in a row. recipe: RandAugment and random erasing besides. mmax9: at magnitude 10 timm's posterize keeps no bit at all,
which Pillow refuses from version 13 on, and a plain ImageFolder would end there."""

STORAGE = {
    "original": Encoding("wds"),
    "proportion": Encoding("ffcv", quality=90, mode="proportion", jpeg_share=0.5, max_side=500),
    "jpg": Encoding("ffcv", quality=90, mode="jpg", max_side=500),
    "raw": Encoding("ffcv", mode="raw", max_side=500),
}
"""By the name in a row. original: the files' own bytes. proportion: as FFCV's authors store ImageNet."""


class Pipeline(NamedTuple):
    """One way to load the set. ffcv_loader: FFCV's own Loader, with threads for workers."""

    pipeline: Literal["imagefolder", "wds", "ffcv", "ffcv_loader"]
    storage: str
    transforms: str
    interpolation: Literal["bicubic", "area"]


PIPELINES = (
    Pipeline("imagefolder", "original", "crop+flip", "bicubic"),
    Pipeline("wds", "original", "crop+flip", "bicubic"),
    Pipeline("wds", "original", "crop+flip", "area"),
    Pipeline("ffcv", "proportion", "crop+flip", "bicubic"),
    Pipeline("ffcv", "proportion", "crop+flip", "area"),
    Pipeline("ffcv", "jpg", "crop+flip", "area"),
    Pipeline("ffcv", "raw", "crop+flip", "area"),
    Pipeline("ffcv_loader", "proportion", "crop+flip", "area"),
    Pipeline("imagefolder", "original", "recipe", "bicubic"),
    Pipeline("wds", "original", "recipe", "bicubic"),
    Pipeline("ffcv", "proportion", "recipe", "bicubic"),
    Pipeline("ffcv", "proportion", "recipe", "area"),
)


@dataclass(frozen=True)
class Load:
    """How the set is loaded: images per batch, worker processes, and how many batches are measured in each turn."""

    batch: int
    workers: int
    batches: int

    @property
    def ahead(self) -> int:
        """Batches that workers hold ready: loaded before measuring starts, and still to be loaded when it ends."""
        return 2 * self.workers + 1


@dataclass(frozen=True)
class Sets:
    """The same images as a folder of files and in each of STORAGE."""

    files: Path
    opened: dict[str, DataSet]


@dataclass(frozen=True)
class Row:
    """Medians over the rounds.

    cpu_s_per_image: of the training process and its workers together, user and system. wait_share: the share of the time for
    which a consumer that only takes batches and normalises them is blocked; near 1 the workers are the limit, near 0 this process.
    """

    pipeline: str
    storage: str
    transforms: str
    interpolation: str
    images_per_s: float
    images_per_s_min: float
    images_per_s_max: float
    cpu_s_per_image: float
    wait_share: float
    ratio_to_imagefolder: float
    """Images per second over those of ImageFolder with the same transforms in the same round."""


class _Turn(NamedTuple):
    """One measurement of one pipeline."""

    images_per_s: float
    cpu_s_per_image: float
    wait_share: float


def prepare_sets(folder: Path, images: int, *, processes: int = 1, progress: Callable[[int], None] = lambda done: None) -> Sets:
    """Generate the images and write them in every storage, as far as they are not there already; leaves all in the page cache.

    progress is called with the number of images done since its last call; of each there are 1 + len(STORAGE).
    """
    if images < len(NAMES):
        raise UserError(f"--images must be at least {len(NAMES)}, one for each class, got {images}")
    require_ffcv()
    multiprocessing.set_forkserver_preload(["data_pipelines.loading.micro_batches"])  # the helper that `prepare` starts is the loaders' too
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
    load: Load,
    rounds: int,
    pipelines: Sequence[Pipeline],
    *,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Row]:
    """Each pipeline once per round. progress is called with 1 after each turn. `pipelines` must hold the ImageFolder of all transforms."""
    turns: dict[Pipeline, list[_Turn]] = {pipeline: [] for pipeline in pipelines}
    for _ in range(rounds):
        for pipeline in pipelines:
            turns[pipeline].append(_take_turn(_batches(pipeline, sets, load), load))
            progress(1)
    return [_row(pipeline, turns[pipeline], turns[_peer_of(pipeline)]) for pipeline in pipelines]


def _peer_of(pipeline: Pipeline) -> Pipeline:
    return Pipeline("imagefolder", "original", pipeline.transforms, "bicubic")


def _row(pipeline: Pipeline, turns: list[_Turn], of_peer: list[_Turn]) -> Row:
    speeds = [turn.images_per_s for turn in turns]
    ratio = median(own / peer.images_per_s for own, peer in zip(speeds, of_peer, strict=True))
    cpu, wait = median(turn.cpu_s_per_image for turn in turns), median(turn.wait_share for turn in turns)
    return Row(*pipeline, median(speeds), min(speeds), max(speeds), cpu, wait, ratio)


def _take_turn(batches: Generator[Batch | torch.Tensor, None, None], load: Load) -> _Turn:
    with closing(batches):
        for _ in range(load.ahead):
            _on_cpu(next(batches))
        torch.set_num_threads(THREADS)
        processes = [psutil.Process(), *(psutil.Process(child.pid) for child in multiprocessing.active_children())]
        cpu, started, waited = _cpu_seconds(processes), time.perf_counter(), 0.0
        for _ in range(load.batches):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            _on_cpu(batch)
        wall, cpu = time.perf_counter() - started, _cpu_seconds(processes) - cpu
    images = load.batches * load.batch
    return _Turn(images / wall, cpu / images, waited / wall)


def _on_cpu(batch: Batch | torch.Tensor) -> torch.Tensor:
    """Normalised: the project's batches are so only when they reach their device."""
    images_BCHW = batch.to(CPU).images_BCHW if isinstance(batch, Batch) else batch
    assert images_BCHW.dtype == torch.float32
    assert images_BCHW.is_contiguous()
    return images_BCHW


def _cpu_seconds(processes: list[psutil.Process]) -> float:
    return sum(times.user + times.system for times in (process.cpu_times() for process in processes))


def _batches(pipeline: Pipeline, sets: Sets, load: Load) -> Generator[Batch | torch.Tensor, None, None]:
    if pipeline.pipeline == "imagefolder":
        return _imagefolder(pipeline, sets.files, load)
    data = sets.opened[pipeline.storage]
    return _ffcv_loader(pipeline, data, load) if pipeline.pipeline == "ffcv_loader" else _ours(pipeline, data, load)


def _config(pipeline: Pipeline, location: str, workers: int) -> DataConfig:
    augment, interpolation = AUGMENT[pipeline.transforms], pipeline.interpolation
    return DataConfig(train=location, val=location, image_size=IMAGE_SIZE, interpolation=interpolation, augment=augment, workers=workers)


def _ours(pipeline: Pipeline, data: DataSet, load: Load) -> Generator[Batch, None, None]:
    config = _config(pipeline, data.location, load.workers)
    sampler = train_sampler(config, data, seed=0, global_batch=load.batch, micro_batch=load.batch, rank=0, world_size=1)
    return train_batches(config, data, sampler, 0, load.batches + 2 * load.ahead)


def _imagefolder(pipeline: Pipeline, files: Path, load: Load) -> Generator[torch.Tensor, None, None]:
    """As most training scripts load ImageNet. The sampler is that of shuffle=True, over as many epochs as are needed.

    Workers are forked from a helper as the project's are: forked from here they would warn of FFCV's threads. They work alike.
    """
    config = _config(pipeline, str(files), load.workers)
    transform = create_transform(
        input_size=IMAGE_SIZE,
        is_training=True,
        color_jitter=None,
        auto_augment=config.augment.auto_augment,
        interpolation=config.interpolation,
        mean=config.mean,
        std=config.std,
        re_prob=config.augment.erase,
        re_mode="pixel",
    )
    images = ImageFolder(files, transform)
    sampler = RandomSampler(images, num_samples=(load.batches + 2 * load.ahead) * load.batch)
    loader = DataLoader(images, load.batch, sampler=sampler, num_workers=load.workers, multiprocessing_context="forkserver")
    for images_BCHW, _ in loader:
        yield images_BCHW


def _ffcv_loader(pipeline: Pipeline, data: DataSet, load: Load) -> Generator[torch.Tensor, None, None]:
    batches = iter(_compiled(Path(data.location) / FFCV_FILE, len(data), load))
    try:
        for images_BCHW, _ in batches:
            yield images_BCHW
    finally:
        for _ in batches:  # its threads end with the last batch only
            pass


@cache
def _compiled(path: Path, samples: int, load: Load) -> Any:
    """FFCV's own Loader. It compiles for seconds, so it is kept for all rounds."""
    from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import NormalizeImage, RandomHorizontalFlip, ToTensor, ToTorchImage

    mean, std = (255 * np.array(values) for values in (IMAGENET_MEAN, IMAGENET_STD))
    crop_and_flip = [RandomResizedCropRGBImageDecoder((IMAGE_SIZE, IMAGE_SIZE)), RandomHorizontalFlip()]
    normalised = [NormalizeImage(mean, std, np.float32), ToTensor(), ToTorchImage(channels_last=False)]
    return Loader(
        str(path),
        batch_size=load.batch,
        num_workers=load.workers,
        os_cache=True,
        sampler=OrderOption.RANDOM,
        indices=np.arange((load.batches + 2 * load.ahead) * load.batch) % samples,
        pipelines={"image": [*crop_and_flip, *normalised], "label": [IntDecoder(), ToTensor()]},
    )
