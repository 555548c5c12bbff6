"""From pixels to the tensor of a batch: timm's transforms, made functions of (seed, epoch, sample)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform

from data_pipelines.config import DataConfig
from data_pipelines.errors import UserError
from data_pipelines.formats.images import Pixels
from data_pipelines.loading.area_transforms import AreaCentre, AreaCropAndFlip

Transform = Callable[[Pixels], torch.Tensor]
"""An image -> [H, W, 3]: uint8, to be normalised as a batch, or float32 and normalised already where that must come earlier."""


def train_transform(config: DataConfig) -> Transform:
    """Random resized crop, flip, RandAugment, random erasing: as far as the configuration asks for each.

    Raises UserError for a policy that timm does not know, and for an interpolation that the installed packages cannot do.
    """
    augment = config.augment
    if augment.crop_scale is None:
        raise UserError("data.augment.crop_scale: null is for event frames; give a range for images, such as [0.08, 1.0], or [1, 1]")
    try:
        crop_and_flip, policy, to_tensor = create_transform(
            input_size=config.image_size,
            is_training=True,
            scale=augment.crop_scale,
            ratio=augment.crop_ratio,
            hflip=augment.flip,
            color_jitter=None,
            auto_augment=augment.auto_augment,
            interpolation="bilinear" if config.interpolation == "area" else config.interpolation,
            mean=config.mean,
            std=config.std,
            re_prob=augment.erase,
            re_mode="pixel",
            separate=True,
        )
    except (AssertionError, ValueError, KeyError) as error:  # timm's ways to refuse a policy string
        raise UserError(
            f"data.augment.auto_augment: timm knows no policy {augment.auto_augment!r} ({error}); a known one is rand-m9-mstd0.5-inc1"
        ) from None
    first = AreaCropAndFlip(config) if config.interpolation == "area" else Steps(as_image, crop_and_flip)
    # Erasing fills with noise made for normalised images. Without it, normalising is left to the batch, as it is cheaper there.
    last = Steps(to_tensor, channels_last) if augment.erase else as_tensor
    return Steps(first, as_image, policy, last) if augment.auto_augment else Steps(first, last)


def eval_transform(config: DataConfig) -> Transform:
    """Resize the short side to image_size / crop_pct, crop the centre. Raises UserError as train_transform does."""
    if config.interpolation == "area":
        return Steps(AreaCentre(config), as_tensor)
    centre = create_transform(
        input_size=config.image_size, interpolation=config.interpolation, crop_pct=config.crop_pct, use_prefetcher=True
    )
    return Steps(as_image, centre, channels_last)


class Steps:
    """Transforms one after the other."""

    def __init__(self, *steps: Callable[[Any], Any]) -> None:
        self.steps = steps

    def __call__(self, pixels: Pixels) -> Any:
        result: Any = pixels
        for step in self.steps:
            result = step(result)
        return result


def as_image(pixels: Pixels) -> Image.Image:
    return Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels


def as_tensor(pixels: Pixels) -> torch.Tensor:
    """uint8 [H, W, 3]."""
    return torch.from_numpy(np.ascontiguousarray(pixels) if isinstance(pixels, np.ndarray) else np.array(pixels))


def channels_last(image_CHW: torch.Tensor) -> torch.Tensor:
    return image_CHW.permute(1, 2, 0)
