"""TODO."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from timm.data.transforms import RandomResizedCropAndInterpolation

from data_pipelines.config import DataConfig
from data_pipelines.errors import UserError
from data_pipelines.formats.images import Pixels


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
