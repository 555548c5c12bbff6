"""Defines the loader pipelines that are compared: the project's own, torchvision's ImageFolder, and FFCV's own Loader.

Every pipeline yields batches of 224 x 224 pixels on the CPU. ImageFolder and FFCV yield normalised float32 images [B, 3, 224, 224].
The project's own pipelines yield a Batch, which is normalised when it is moved to its device.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from timm.data import create_transform
from torch.utils.data import DataLoader, RandomSampler
from torchvision.datasets import ImageFolder

from data_pipelines.config import IMAGENET_MEAN, IMAGENET_STD, AugmentConfig, DataConfig
from data_pipelines.formats.ffcv_joiner import FFCV_FILE
from data_pipelines.loading.batch import Batch
from data_pipelines.loading.dataloader import train_batches, train_sampler
from data_pipelines.loading.dataset import DataSet
from data_pipelines.prepare.options import Encoding

IMAGE_SIZE = 224

AUGMENT = {"crop+flip": AugmentConfig(), "recipe": AugmentConfig(auto_augment="rand-m9-mmax9-mstd0.5-inc1", erase=0.25)}
"""Augmentations by their name in a row. `recipe` adds RandAugment and random erasing.

The policy has mmax9, because at magnitude 10 timm's posterize keeps no bit. Pillow refuses that from version 13 on, and a plain
ImageFolder would stop with its error."""

STORAGE = {
    "original": Encoding("wds"),
    "proportion": Encoding("ffcv", quality=90, mode="proportion", jpeg_share=0.5, max_side=500),
    "jpg": Encoding("ffcv", quality=90, mode="jpg", max_side=500),
    "raw": Encoding("ffcv", mode="raw", max_side=500),
}
"""Ways to store the set, by their name in a row. `original` keeps the bytes of the files. `proportion` is how the authors of FFCV store
ImageNet."""


class Pipeline(NamedTuple):
    """One way to load the set. `ffcv_loader` is FFCV's own Loader, whose workers are threads."""

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
class LoaderSetting:
    """The conditions that all pipelines share: images per batch, worker processes, and batches that are measured in each turn."""

    batch: int
    workers: int
    batches: int

    @property
    def ahead(self) -> int:
        """The number of batches that workers hold ready. So many are loaded before the measurement, and so many remain after it."""
        return 2 * self.workers + 1


@dataclass(frozen=True)
class Sets:
    """Holds one set of images as a folder of files, and as one data set for each entry of STORAGE."""

    files: Path
    opened: dict[str, DataSet]


def batches_of(pipeline: Pipeline, sets: Sets, setting: LoaderSetting) -> Generator[Batch | torch.Tensor, None, None]:
    """Start a pipeline. It yields at least `setting.batches + setting.ahead` batches; closing it ends its workers."""
    if pipeline.pipeline == "imagefolder":
        return _imagefolder(pipeline, sets.files, setting)
    data = sets.opened[pipeline.storage]
    return _ffcv_loader(pipeline, data, setting) if pipeline.pipeline == "ffcv_loader" else _ours(pipeline, data, setting)


def _config(pipeline: Pipeline, location: str, workers: int) -> DataConfig:
    augment, interpolation = AUGMENT[pipeline.transforms], pipeline.interpolation
    return DataConfig(train=location, val=location, image_size=IMAGE_SIZE, interpolation=interpolation, augment=augment, workers=workers)


def _ours(pipeline: Pipeline, data: DataSet, setting: LoaderSetting) -> Generator[Batch, None, None]:
    config = _config(pipeline, data.location, setting.workers)
    sampler = train_sampler(config, data, seed=0, global_batch=setting.batch, micro_batch=setting.batch, rank=0, world_size=1)
    return train_batches(config, data, sampler, 0, setting.batches + 2 * setting.ahead)


def _imagefolder(pipeline: Pipeline, files: Path, setting: LoaderSetting) -> Generator[torch.Tensor, None, None]:
    """Load as most training scripts load ImageNet. The sampler is that of shuffle=True, over as many epochs as are needed.

    Workers are forked from a helper process, as those of the project are. Forked from this process, they would warn of FFCV's threads.
    """
    config = _config(pipeline, str(files), setting.workers)
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
    sampler = RandomSampler(images, num_samples=(setting.batches + 2 * setting.ahead) * setting.batch)
    loader = DataLoader(images, setting.batch, sampler=sampler, num_workers=setting.workers, multiprocessing_context="forkserver")
    for images_BCHW, _ in loader:
        yield images_BCHW


def _ffcv_loader(pipeline: Pipeline, data: DataSet, setting: LoaderSetting) -> Generator[torch.Tensor, None, None]:
    batches = iter(_compiled(Path(data.location) / FFCV_FILE, len(data), setting))
    try:
        for images_BCHW, _ in batches:
            yield images_BCHW
    finally:
        for _ in batches:  # Its threads end only with the last batch.
            pass


@cache
def _compiled(path: Path, samples: int, setting: LoaderSetting) -> Any:
    """Make FFCV's own Loader. It compiles for seconds, so it is kept for all rounds."""
    from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import NormalizeImage, RandomHorizontalFlip, ToTensor, ToTorchImage

    mean, std = (255 * np.array(values) for values in (IMAGENET_MEAN, IMAGENET_STD))
    crop_and_flip = [RandomResizedCropRGBImageDecoder((IMAGE_SIZE, IMAGE_SIZE)), RandomHorizontalFlip()]
    normalised = [NormalizeImage(mean, std, np.float32), ToTensor(), ToTorchImage(channels_last=False)]
    return Loader(
        str(path),
        batch_size=setting.batch,
        num_workers=setting.workers,
        os_cache=True,
        sampler=OrderOption.RANDOM,
        indices=np.arange((setting.batches + 2 * setting.ahead) * setting.batch) % samples,
        pipelines={"image": [*crop_and_flip, *normalised], "label": [IntDecoder(), ToTensor()]},
    )
