"""Turns images that belong to no data set into a batch, as evaluation turns those of a set."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from data_pipelines.config import DataConfig
from data_pipelines.errors import DataError
from data_pipelines.formats.images import Pixels
from data_pipelines.loading.event_transform import EventTransform
from data_pipelines.loading.micro_batches import stack
from data_pipelines.loading.normalisation import Normalisation
from data_pipelines.loading.transforms import eval_transform


class SingleImages:
    """Makes images as large as the network takes them, and normalises them. Event frames stay as they are."""

    def __init__(self, config: DataConfig, *, events: bool) -> None:
        """config: says size, crop, interpolation, mean and standard deviation. events: the samples are event frames."""
        self.events = events
        self._transform = EventTransform(_without_augmentation(config), training=False) if events else eval_transform(config)
        self._normalisation = Normalisation(config.mean, config.std)

    def tensor(self, pixels: Pixels) -> torch.Tensor:
        """Resize and crop one image to uint8 [H, W, 3], or convert event frames to float32 [T, 2, H, W].

        Raises DataError for an image that cannot be resized, such as one of a single pixel.
        """
        try:
            return self._transform(pixels)
        except (ValueError, ArithmeticError) as error:
            raise DataError(f"the image cannot be transformed ({error})") from None

    def batch(self, tensors: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
        """Return the input of a network, float32 [B, 3, H, W], or [T, B, 2, H, W] for event frames."""
        stacked = stack(list(tensors)).to(device)
        return stacked if self.events else self._normalisation(stacked)


def _without_augmentation(config: DataConfig) -> DataConfig:
    """Return a configuration of the same images. A weights folder says nothing of augmentation, whose defaults are for images."""
    return config.model_copy(update={"augment": config.augment.model_copy(update={"crop_scale": None, "auto_augment": None, "erase": 0.0})})
