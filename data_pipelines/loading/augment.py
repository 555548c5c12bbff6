"""From pixels to the tensor of a batch: timm's transforms, made functions of (seed, epoch, sample)."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import Mixup, create_transform
from timm.data.transforms import RandomResizedCropAndInterpolation

from data_pipelines.config import AugmentConfig, DataConfig
from data_pipelines.errors import UserError
from data_pipelines.formats.images import Pixels

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


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise UserError(
            f"data.interpolation: area needs OpenCV ({error}); install it with: pip install 'tdformer[ffcv]', or use bicubic"
        ) from None
    cv2.setNumThreads(1)  # loader processes share the cores among themselves
    return cv2


class AreaCropAndFlip:
    """Random resized crop by averaging areas, as FFCV's loader does it, and flip: a fraction of bicubic's cost.

    The crop is timm's, drawn from Python's generator; the flip is drawn from torch's, as torchvision does.
    """

    def __init__(self, config: DataConfig) -> None:
        _opencv()
        self.size, self.augment = config.image_size, config.augment

    def __call__(self, pixels: Pixels) -> np.ndarray:
        image = np.asarray(pixels)
        shape_only = torch.empty(1).expand(3, *image.shape[:2])  # all that the draw looks at
        top, left, height, width = RandomResizedCropAndInterpolation.get_params(
            shape_only, self.augment.crop_scale, self.augment.crop_ratio
        )
        top, left = min(top, image.shape[0] - 1), min(left, image.shape[1] - 1)  # of an image of one pixel the draw may take none
        crop = _resized(image[top : top + max(height, 1), left : left + max(width, 1)], self.size, self.size)
        return _opencv().flip(crop, 1) if torch.rand(1) < self.augment.flip else crop


class AreaCentre:
    """The centre that eval_transform's other interpolations crop, resized by averaging areas."""

    def __init__(self, config: DataConfig) -> None:
        _opencv()
        self.size, self.resized = config.image_size, math.floor(config.image_size / config.crop_pct)

    def __call__(self, pixels: Pixels) -> np.ndarray:
        image = np.asarray(pixels)
        height, width = (max(self.size, round(side * self.resized / min(image.shape[:2]))) for side in image.shape[:2])
        top, left = round((height - self.size) / 2), round((width - self.size) / 2)
        return _resized(image, height, width)[top : top + self.size, left : left + self.size]


def _resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    cv2 = _opencv()
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def seed_rng(*key: int) -> None:
    """Make every random draw from here on a function of the key.

    timm's and torchvision's transforms draw from the three global generators (random, NumPy, torch).
    """
    words = np.random.SeedSequence(key).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    torch.default_generator.manual_seed(int(words[2]))  # torch.manual_seed visits every device, which takes a hundred times as long


@contextmanager
def fork_rng() -> Iterator[None]:
    """Whatever is drawn or seeded inside, the three global generators go on afterwards as if it had not been."""
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)


class Mix:
    """Mixup and cutmix of a micro-batch (timm's, one draw per micro-batch): labels become probabilities.

    Drawn from (seed, step, number of the micro-batch in its global batch), so that it does not depend on the rank.
    """

    def __init__(self, augment: AugmentConfig, num_classes: int) -> None:
        self._mixup = Mixup(augment.mixup, augment.cutmix, prob=augment.mix_probability, label_smoothing=0.0, num_classes=num_classes)

    def __call__(self, images_BCHW: torch.Tensor, labels_B: torch.Tensor, *key: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised images, changed in place, and float32 labels [B, classes]."""
        with fork_rng():
            seed_rng(*key)
            return self._mixup(images_BCHW, labels_B)
