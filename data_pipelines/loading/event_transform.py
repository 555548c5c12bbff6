"""Turns event frames into tensors, and augments some of them in training."""

from __future__ import annotations

import numpy as np
import torch

from data_pipelines.config import AugmentConfig, DataConfig
from data_pipelines.errors import UserError
from data_pipelines.formats.images import Pixels
from data_pipelines.loading.event_augment import augment_events


class EventTransform:
    """Converts frames [T, 2, H, W] to float32. In training it mirrors and augments them as configured.

    The draws are from torch's global generator. Raises UserError if the configuration asks for a step that event frames do not have,
    so that no step is silently left out.
    """

    def __init__(self, config: DataConfig, *, training: bool) -> None:
        _check_augmentation(config.augment)
        self.flip = config.augment.flip if training else 0.0
        self.augments = training and config.augment.events

    def __call__(self, pixels: Pixels) -> torch.Tensor:
        frames = np.asarray(pixels)
        if self.flip and torch.rand(1) < self.flip:
            frames = frames[..., ::-1]
        frames_TCHW = torch.from_numpy(frames.astype(np.float32))
        return augment_events(frames_TCHW) if self.augments else frames_TCHW


def _check_augmentation(augment: AugmentConfig) -> None:
    image_steps = {
        "crop_scale": augment.crop_scale,
        "auto_augment": augment.auto_augment,
        "color_jitter": augment.color_jitter or None,
        "erase": augment.erase or None,
    }
    if requested := [name for name, value in image_steps.items() if value is not None]:
        raise UserError(
            f"data.augment.{requested[0]}: event frames are augmented by flip, events, mixup and cutmix alone; set crop_scale and "
            "auto_augment to null, and color_jitter and erase to 0."
        )
