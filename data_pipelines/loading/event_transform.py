"""Turns event frames into tensors, and mirrors some of them in training."""

from __future__ import annotations

import numpy as np
import torch

from data_pipelines.config import AugmentConfig, DataConfig
from data_pipelines.errors import UserError
from data_pipelines.formats.images import Pixels


class EventTransform:
    """Converts frames [T, 2, H, W] to float32. In training it mirrors them with the configured probability.

    The draw is from torch's global generator. Raises UserError if the configuration asks for a step that event frames do not have,
    so that no step is silently left out.
    """

    def __init__(self, config: DataConfig, *, training: bool) -> None:
        _check_augmentation(config.augment)
        self.flip = config.augment.flip if training else 0.0

    def __call__(self, pixels: Pixels) -> torch.Tensor:
        frames = np.asarray(pixels)
        if self.flip and torch.rand(1) < self.flip:
            frames = frames[..., ::-1]
        return torch.from_numpy(frames.astype(np.float32))


def _check_augmentation(augment: AugmentConfig) -> None:
    image_steps = {
        "crop_scale": augment.crop_scale,
        "auto_augment": augment.auto_augment,
        "color_jitter": augment.color_jitter or None,
        "erase": augment.erase or None,
        "mixup": augment.mixup or None,
        "cutmix": augment.cutmix or None,
    }
    if requested := [name for name, value in image_steps.items() if value is not None]:
        raise UserError(
            f"data.augment.{requested[0]}: event frames are augmented by flips alone; set crop_scale and auto_augment to null, "
            "and color_jitter, erase, mixup and cutmix to 0."
        )
