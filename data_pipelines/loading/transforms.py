"""Turns images into tensors, with timm's transforms for training and evaluation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torchvision.transforms import Compose

from data_pipelines.config import DataConfig
from data_pipelines.errors import UserError
from data_pipelines.formats.images import Pixels
from data_pipelines.loading.area_transforms import AreaCentreCrop, AreaCropAndFlip

Transform = Callable[[Pixels], torch.Tensor]
"""Turns an image into a tensor [H, W, 3]: uint8, which the batch normalises later; or float32, normalised already."""


def train_transform(config: DataConfig) -> Transform:
    """Compose the configured training steps: random resized crop, flip, RandAugment or colour jitter, random erasing.

    Raises UserError for a policy that timm does not know, and for an interpolation that the installed packages cannot do.
    """
    augment = config.augment
    if augment.events:
        raise UserError("data.augment.events is for event frames, and these are images; use auto_augment, or set it to false")
    if augment.crop_scale is None:
        raise UserError("data.augment.crop_scale: null is for event frames; give a range for images, such as [0.08, 1.0], or [1, 1]")
    crop_and_flip, policy, to_tensor = _timm_train_steps(config)
    first = AreaCropAndFlip(config) if config.interpolation == "area" else Compose([as_image, crop_and_flip])
    # Erasing fills what is normalised already, so it normalises first. Otherwise the batch normalises, which is cheaper.
    last = Compose([to_tensor, channels_last]) if augment.erase else as_tensor
    return Compose([first, as_image, policy, last] if augment.auto_augment or augment.color_jitter else [first, last])


def _timm_train_steps(config: DataConfig) -> tuple[Any, Any, Any]:
    """Make timm's three groups of steps: crop and flip, RandAugment or colour jitter, and conversion to a tensor with erasing."""
    augment = config.augment
    try:
        return create_transform(
            input_size=config.image_size,
            is_training=True,
            scale=augment.crop_scale,
            ratio=augment.crop_ratio,
            hflip=augment.flip,
            color_jitter=augment.color_jitter or None,
            auto_augment=augment.auto_augment,
            interpolation="bilinear" if config.interpolation == "area" else config.interpolation,
            mean=config.mean,
            std=config.std,
            re_prob=augment.erase,
            re_mode=augment.erase_mode,
            separate=True,
        )
    except (AssertionError, ValueError, KeyError) as error:  # what timm raises for an unknown policy
        raise UserError(
            f"data.augment.auto_augment: timm knows no policy {augment.auto_augment!r} ({error}); a known one is rand-m9-mstd0.5-inc1"
        ) from None


def eval_transform(config: DataConfig) -> Transform:
    """Resize the short side to image_size / crop_pct, and crop the centre. Raises UserError as train_transform does."""
    if config.interpolation == "area":
        return Compose([AreaCentreCrop(config), as_tensor])
    centre_crop = create_transform(
        input_size=config.image_size, interpolation=config.interpolation, crop_pct=config.crop_pct, use_prefetcher=True
    )
    return Compose([as_image, centre_crop, channels_last])


def as_image(pixels: Pixels) -> Image.Image:
    """Convert uint8 pixels [H, W, 3] to a Pillow image, if they are not one."""
    return Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels


def as_tensor(pixels: Pixels) -> torch.Tensor:
    """Convert an image to a tensor uint8 [H, W, 3]."""
    return torch.from_numpy(np.ascontiguousarray(pixels) if isinstance(pixels, np.ndarray) else np.array(pixels))


def channels_last(image_CHW: torch.Tensor) -> torch.Tensor:
    """View an image [C, H, W] as [H, W, C]."""
    return image_CHW.permute(1, 2, 0)
