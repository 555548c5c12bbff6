"""Crops and resizes by averaging areas, as FFCV's loader does, at a fraction of bicubic's cost."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from timm.data.transforms import RandomResizedCropAndInterpolation

from data_pipelines.config import DataConfig
from data_pipelines.errors import UserError
from data_pipelines.formats.images import Pixels


def load_opencv() -> Any:
    """Import OpenCV for use in a loader process. Raises UserError if it is not installed."""
    try:
        import cv2
    except ImportError as error:
        raise UserError(
            f"data.interpolation: area needs OpenCV ({error}); install it with: pip install 'tdformer[ffcv]', or use bicubic"
        ) from None
    cv2.setNumThreads(1)  # the loader processes already use all cores
    return cv2


class AreaCropAndFlip:
    """Random resized crop and random flip.

    The crop is timm's, drawn from Python's generator. The flip is drawn from torch's generator, as torchvision does.
    """

    def __init__(self, config: DataConfig) -> None:
        load_opencv()
        self.size, self.augment = config.image_size, config.augment

    def __call__(self, pixels: Pixels) -> np.ndarray:
        image = np.asarray(pixels)
        shape_only = torch.empty(1).expand(3, *image.shape[:2])  # timm's draw looks at the shape only
        top, left, height, width = RandomResizedCropAndInterpolation.get_params(
            shape_only, self.augment.crop_scale, self.augment.crop_ratio
        )
        top, left = min(top, image.shape[0] - 1), min(left, image.shape[1] - 1)  # an image of one pixel may get an empty crop
        crop = resize_area(image[top : top + max(height, 1), left : left + max(width, 1)], self.size, self.size)
        return load_opencv().flip(crop, 1) if torch.rand(1) < self.augment.flip else crop


class AreaCentreCrop:
    """Resizes the short side to image_size / crop_pct, and crops the centre, as eval_transform does by other interpolations."""

    def __init__(self, config: DataConfig) -> None:
        load_opencv()
        self.size, self.resized = config.image_size, math.floor(config.image_size / config.crop_pct)

    def __call__(self, pixels: Pixels) -> np.ndarray:
        image = np.asarray(pixels)
        height, width = (max(self.size, round(side * self.resized / min(image.shape[:2]))) for side in image.shape[:2])
        top, left = round((height - self.size) / 2), round((width - self.size) / 2)
        return resize_area(image, height, width)[top : top + self.size, left : left + self.size]


def resize_area(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize an image uint8 [H, W, 3] by averaging areas."""
    cv2 = load_opencv()
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
