"""TODO."""

from __future__ import annotations

import torch
from timm.data import Mixup

from data_pipelines.config import AugmentConfig
from data_pipelines.loading.rng import fork_rng, seed_rng


class Mix:
    """Mixup and cutmix of a micro-batch (timm's, one draw per micro-batch): labels become probabilities.

    Drawn from (seed, step, number of the micro-batch in its global batch), so that it does not depend on the rank.
    """

    def __init__(self, augment: AugmentConfig, num_classes: int) -> None:
        self._mixup = Mixup(augment.mixup, augment.cutmix, prob=augment.mix_probability, label_smoothing=0.0, num_classes=num_classes)

    def __call__(self, images_BCHW: torch.Tensor, labels_B: torch.Tensor, *key: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised images, changed in place, and float32 labels [B, classes]."""
        with fork_rng():
            seed_rng(*key)
            return self._mixup(images_BCHW, labels_B)
