"""From a decoded image to the tensor that the model sees; timm's transforms, made a function of (seed, epoch, sample)."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform

from data_pipelines.config import DataConfig
from data_pipelines.errors import UserError

Transform = Callable[[Image.Image], torch.Tensor]
"""RGB image -> float32 [3, H, W], normalised."""


def train_transform(config: DataConfig) -> Transform:
    """Random resized crop, flip, RandAugment, normalisation, random erasing: as far as the configuration asks for each."""
    augment = config.augment
    try:
        return create_transform(
            input_size=config.image_size,
            is_training=True,
            scale=augment.crop_scale,
            ratio=augment.crop_ratio,
            hflip=augment.flip,
            color_jitter=0.0,
            auto_augment=augment.auto_augment,
            interpolation=config.interpolation,
            mean=config.mean,
            std=config.std,
            re_prob=augment.erase,
            re_mode="pixel",
        )
    except (AssertionError, ValueError, KeyError) as error:  # timm's ways to refuse a policy string
        policy = augment.auto_augment
        raise UserError(
            f"data.augment.auto_augment: timm knows no policy {policy!r} ({error}); a known one is rand-m9-mstd0.5-inc1"
        ) from None


def eval_transform(config: DataConfig) -> Transform:
    """Resize the short side to image_size / crop_pct, crop the centre, normalise."""
    return create_transform(
        input_size=config.image_size, interpolation=config.interpolation, mean=config.mean, std=config.std, crop_pct=config.crop_pct
    )


@contextmanager
def seeded(seed: int, epoch: int, sample: int) -> Iterator[None]:
    """Inside, every random draw of a transform is a function of (seed, epoch, sample); outside nothing has changed.

    timm's and torchvision's transforms draw from the three global generators (random, NumPy, torch), so
    these are set and put back.
    """
    words = np.random.SeedSequence([seed, epoch, sample]).generate_state(3)
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(int(words[0]))
        np.random.seed(words[1])
        torch.manual_seed(int(words[2]))
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
