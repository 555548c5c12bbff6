"""What a run says about its data. Read by this package alone; imports neither torch nor tdformer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Probability = Annotated[float, Field(ge=0, le=1)]
Channels = tuple[float, float, float]
PositiveFloat = Annotated[float, Field(gt=0)]

# The usual ImageNet statistics over RGB in [0, 1].
IMAGENET_MEAN: Channels = (0.485, 0.456, 0.406)
IMAGENET_STD: Channels = (0.229, 0.224, 0.225)


class Section(BaseModel):
    """Base of every configuration section: unknown keys are errors, values never change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class AugmentConfig(Section):
    """Training-time augmentation, in the order in which it is applied (timm's implementations)."""

    crop_scale: tuple[Probability, Probability] = (0.08, 1.0)
    """Range of the random resized crop's area, as a share of the image."""
    crop_ratio: tuple[PositiveFloat, PositiveFloat] = (0.75, 4 / 3)
    """Range of the crop's aspect ratio (width / height)."""
    flip: Probability = 0.5
    """Probability of a horizontal flip."""
    auto_augment: str | None = None
    """timm's policy string, for example ``rand-m9-mstd0.5-inc1``."""
    erase: Probability = 0.0
    """Probability of random erasing with per-pixel noise."""


class DataConfig(Section):
    """Where the samples lie and how a sample becomes a normalised image."""

    train: Path
    """Folder of the training shards (written by ``tdformer data prepare``)."""
    val: Path
    """Folder of the validation shards."""
    train_samples: Annotated[int, Field(ge=1)] | None = None
    """How many samples `train` must hold; a set that was only half copied is refused. null: any number."""
    image_size: Annotated[int, Field(ge=16)] = 224
    """Height and width of the images that the model sees, in pixels."""
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    mean: Channels = IMAGENET_MEAN
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = IMAGENET_STD
    crop_pct: Annotated[float, Field(gt=0, le=1)] = 0.875
    """Evaluation resizes the short side to image_size / crop_pct, then crops the centre."""
    augment: AugmentConfig = AugmentConfig()
    workers: Annotated[int, Field(ge=0)] = 4
    """Loader processes per rank for training; 0 loads in the training process itself."""
