"""What a run says about its data. Read by this package alone; imports neither torch nor tdformer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from data_pipelines.storage.locations import check_location

Probability = Annotated[float, Field(ge=0, le=1)]
Channels = tuple[float, float, float]
PositiveFloat = Annotated[float, Field(gt=0)]

# The usual ImageNet statistics over RGB in [0, 1].
IMAGENET_MEAN: Channels = (0.485, 0.456, 0.406)
IMAGENET_STD: Channels = (0.229, 0.224, 0.225)


Location = Annotated[str, BeforeValidator(str), AfterValidator(check_location)]


class Section(BaseModel):
    """Base of every configuration section: unknown keys are errors, values never change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class AugmentConfig(Section):
    """Training-time augmentation, in the order in which it is applied (timm's implementations)."""

    crop_scale: tuple[Probability, Probability] | None = (0.08, 1.0)
    """Range of the random resized crop's area, as a share of the image; null for event frames, which are not cropped."""
    crop_ratio: tuple[PositiveFloat, PositiveFloat] = (0.75, 4 / 3)
    """Range of the crop's aspect ratio (width / height)."""
    flip: Probability = 0.5
    """Probability of a horizontal flip."""
    auto_augment: str | None = None
    """timm's policy string, for example ``rand-m9-mstd0.5-inc1``."""
    erase: Probability = 0.0
    """Probability of random erasing with per-pixel noise."""
    mixup: Annotated[float, Field(ge=0)] = 0.0
    """alpha of mixup's Beta distribution; 0: none. One draw per micro-batch; with cutmix too, each is taken half of the time."""
    cutmix: Annotated[float, Field(ge=0)] = 0.0
    """alpha of cutmix's Beta distribution; 0: none."""
    mix_probability: Probability = 1.0
    """Share of the micro-batches that are mixed at all."""

    @property
    def mixes(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0

    @field_validator("mixup", "cutmix")
    @classmethod
    def _is_a_distribution(cls, alpha: float) -> float:
        if alpha and not 1e-3 <= alpha <= 1e3:
            raise ValueError(f"must be 0 (none) or from 0.001 to 1000, got {alpha}")
        return alpha

    @model_validator(mode="after")
    def _ranges_ascend(self) -> AugmentConfig:
        for name, (low, high) in (("crop_scale", self.crop_scale or (1, 1)), ("crop_ratio", self.crop_ratio)):
            if low > high or high == 0:
                raise ValueError(f"{name} must be (lower, upper) with lower <= upper and upper > 0, got {(low, high)}")
        return self


class DataConfig(Section):
    """Where the samples lie and how a sample becomes a normalised image."""

    train: Location
    """The training set: a folder written by ``tdformer data prepare`` or ``tdformer data index``; or, for prepared WebDataset
    shards, its URL (http(s), s3, gs, …)."""
    val: Location
    """The validation set, likewise."""
    shard_cache: Path | None = None
    """Where the shards of a URL are kept, on a disk of the machine itself, for all its processes; null: its temporary folder."""
    shard_cache_gb: PositiveFloat = 100.0
    """How much is kept at most, in GB (10^9 bytes); the least recently used shards make room."""
    train_samples: Annotated[int, Field(ge=1)] | None = None
    """How many samples `train` must hold; a set that was only half copied is refused. null: any number."""
    image_size: Annotated[int, Field(ge=16)] = 224
    """Height and width of the images that the model sees, in pixels."""
    interpolation: Literal["bilinear", "bicubic", "area"] = "bicubic"
    """How crops are resized. area averages, as FFCV's own loader does: the fastest, and another recipe than the papers' bicubic."""
    mean: Channels = IMAGENET_MEAN
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = IMAGENET_STD
    crop_pct: Annotated[float, Field(gt=0, le=1)] = 0.875
    """Evaluation resizes the short side to image_size / crop_pct, then crops the centre."""
    augment: AugmentConfig = AugmentConfig()
    shuffle: Literal["full", "blocks"] = "full"
    """full: each epoch is one permutation of all samples. blocks: shards are shuffled, then samples within windows of
    shuffle_window shards, so that a disk that seeks slowly, or an object store, is read shard by shard."""
    shuffle_window: Annotated[int, Field(ge=1)] = 16
    on_bad_sample: Literal["raise", "skip"] = "raise"
    """What training does about an image that cannot be read or decoded. skip: the next one in the order of storage takes its place,
    and each is logged and counted. Evaluation always raises: it counts every sample."""
    max_bad_samples: Annotated[int, Field(ge=0)] = 100
    """skip: more than so many skipped visits in a run end it."""
    workers: Annotated[int, Field(ge=0)] = 4
    """Loader processes per rank for training; 0 loads in the training process itself."""
