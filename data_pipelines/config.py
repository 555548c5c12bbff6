"""Defines the data section of a run's configuration. Only this package reads it. Imports neither torch nor tdformer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from data_pipelines.storage.locations import check_location

Probability = Annotated[float, Field(ge=0, le=1)]
Channels = tuple[float, float, float]
PositiveFloat = Annotated[float, Field(gt=0)]

IMAGENET_MEAN: Channels = (0.485, 0.456, 0.406)
IMAGENET_STD: Channels = (0.229, 0.224, 0.225)
"""The usual ImageNet statistics over RGB in [0, 1]."""

Location = Annotated[str, BeforeValidator(str), AfterValidator(check_location)]


class Section(BaseModel):
    """Base class of every configuration section. Unknown keys are errors, and values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class AugmentConfig(Section):
    """Augmentation in training, in the order in which it is applied. The implementations are timm's."""

    crop_scale: tuple[Probability, Probability] | None = (0.08, 1.0)
    """Range of the random resized crop's area, as a share of the image. null: no crop, for event frames."""
    crop_ratio: tuple[PositiveFloat, PositiveFloat] = (0.75, 4 / 3)
    """Range of the crop's aspect ratio (width / height)."""
    flip: Probability = 0.5
    """Probability of a horizontal flip."""
    auto_augment: str | None = None
    """timm's policy string, for example ``rand-m9-mstd0.5-inc1``."""
    color_jitter: Probability = 0.0
    """Largest relative change of brightness, contrast and saturation. timm leaves it out beside auto_augment, so it is refused there."""
    erase: Probability = 0.0
    """Probability of random erasing."""
    erase_mode: Literal["pixel", "const"] = "pixel"
    """What fills the erased rectangle. pixel: normal noise for each pixel. const: zeros, the mean colour."""
    repeats: Annotated[int, Field(ge=1, le=64)] = 1
    """Copies of each image in its global batch, each augmented by draws of its own (repeated augmentation). An epoch has as many steps as
    with 1, and so visits the fewer images."""
    events: bool = False
    """true: event frames are sheared, shifted, rotated or cut out, all frames of a sample alike, as in the public QKFormer code."""
    mixup: Annotated[float, Field(ge=0)] = 0.0
    """alpha of mixup's Beta distribution; 0: no mixup. One draw per micro-batch."""
    cutmix: Annotated[float, Field(ge=0)] = 0.0
    """alpha of cutmix's Beta distribution; 0: no cutmix."""
    mix_probability: Probability = 1.0
    """Probability that a micro-batch is mixed."""
    cutmix_share: Probability = 0.5
    """Probability that cutmix is chosen for a micro-batch, where mixup is on too. timm calls it switch_prob."""
    mix_off_epoch: Annotated[int, Field(ge=0)] | None = None
    """Epoch, counted from 0, from which on nothing is mixed any more. null: all epochs are mixed."""

    @property
    def mixes(self) -> bool:
        """True if mixup or cutmix is on."""
        return self.mixup > 0 or self.cutmix > 0

    def mixes_in(self, epoch: int) -> bool:
        """Tell whether mixup or cutmix is on in an epoch, counted from 0."""
        return self.mixes and (self.mix_off_epoch is None or epoch < self.mix_off_epoch)

    @field_validator("mixup", "cutmix")
    @classmethod
    def _is_a_distribution(cls, alpha: float) -> float:
        if alpha and not 1e-3 <= alpha <= 1e3:
            raise ValueError(f"must be 0 (none) or from 0.001 to 1000, got {alpha}")
        return alpha

    @model_validator(mode="after")
    def _nothing_is_without_effect(self) -> AugmentConfig:
        if self.color_jitter and self.auto_augment:
            raise ValueError(f"color_jitter has no effect beside auto_augment ({self.auto_augment}), as in timm; set one of them")
        if self.mix_off_epoch is not None and not self.mixes:
            raise ValueError(f"mix_off_epoch is {self.mix_off_epoch}, and neither mixup nor cutmix is on")
        return self

    @model_validator(mode="after")
    def _ranges_ascend(self) -> AugmentConfig:
        for name, (low, high) in (("crop_scale", self.crop_scale or (1, 1)), ("crop_ratio", self.crop_ratio)):
            if low > high or high == 0:
                raise ValueError(f"{name} must be (lower, upper) with lower <= upper and upper > 0, got {(low, high)}")
        return self


class DataConfig(Section):
    """Describes where the data sets are, and how a sample becomes a normalised image."""

    train: Location
    """The training set: a folder written by ``tdformer data prepare`` or ``tdformer data index``; or the URL (http(s), s3, gs, …) of
    prepared WebDataset shards."""
    val: Location
    """The validation set: a folder or URL, as for `train`."""
    shard_cache: Path | None = None
    """Folder that caches the shards of a URL, for all processes of the machine. It must be on a local disk. null: the temporary folder."""
    shard_cache_gb: PositiveFloat = 100.0
    """Largest size of the cache in GB (10^9 bytes). The least recently used shards are removed first."""
    train_samples: Annotated[int, Field(ge=1)] | None = None
    """Number of samples that `train` must hold, so that an incomplete copy is refused. null: any number."""
    image_size: Annotated[int, Field(ge=16)] = 224
    """Height and width of the images that the model sees, in pixels."""
    interpolation: Literal["bilinear", "bicubic", "area"] = "bicubic"
    """How crops are resized. area: averaging areas, as FFCV's own loader does. It is the fastest, but the papers use bicubic."""
    mean: Channels = IMAGENET_MEAN
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = IMAGENET_STD
    crop_pct: Annotated[float, Field(gt=0, le=1)] = 0.875
    """Evaluation resizes the short side to image_size / crop_pct, and then crops the centre."""
    augment: AugmentConfig = AugmentConfig()
    shuffle: Literal["full", "blocks"] = "full"
    """full: each epoch is one permutation of all samples. blocks: the shards are shuffled, then the samples within windows of
    shuffle_window shards. So an object store, or a disk that seeks slowly, is read shard by shard."""
    shuffle_window: Annotated[int, Field(ge=1)] = 16
    """Number of shards whose samples are shuffled together by `shuffle: blocks`."""
    on_bad_sample: Literal["raise", "skip"] = "raise"
    """What training does about an unreadable image. skip: the next image in storage order takes its place, and each case is logged and
    counted. Evaluation always raises, since it counts every sample."""
    max_bad_samples: Annotated[int, Field(ge=0)] = 100
    """Largest number of visits that a run may skip with `on_bad_sample: skip`. It ends at the next one."""
    patience_minutes: Annotated[float, Field(ge=0, le=180)] = 10.0
    """Minutes for which a sample or a file that cannot be read now (a lost mount, a busy server, too many open files) is tried again.
    Then the run saves its state and ends with exit code 75, and the same command goes on."""
    workers: Annotated[int, Field(ge=0)] = 4
    """Loader processes per rank. 0: the training process itself loads."""
