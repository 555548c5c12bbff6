"""TODO."""

from __future__ import annotations

import numpy as np
import torch

from data_pipelines.config import DataConfig
from data_pipelines.errors import UserError
from data_pipelines.formats.images import Pixels


class EventTransform:
    """Frames -> float32 of the same shape, mirrored with the configured probability (drawn from torch's generator).

    Raises UserError if the configuration asks for a step that is none for events: nothing is left out silently.
    """

    def __init__(self, config: DataConfig, *, training: bool) -> None:
        augment = config.augment
        asked = {"crop_scale": augment.crop_scale, "auto_augment": augment.auto_augment, "erase": augment.erase or None}
        asked["mixup"] = augment.mixup or None
        asked["cutmix"] = augment.cutmix or None
        if not_for_events := [name for name, value in asked.items() if value is not None]:
            raise UserError(
                f"data.augment.{not_for_events[0]}: event frames are augmented by flips alone; set crop_scale and auto_augment to null, "
                "and erase, mixup and cutmix to 0."
            )
        self.flip = augment.flip if training else 0.0

    def __call__(self, pixels: Pixels) -> torch.Tensor:
        frames = np.asarray(pixels)
        if self.flip and torch.rand(1) < self.flip:
            frames = frames[..., ::-1]
        return torch.from_numpy(frames.astype(np.float32))
