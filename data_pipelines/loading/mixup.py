"""Applies mixup and cutmix to a micro-batch, with draws that do not depend on the rank."""

from __future__ import annotations

import torch
from timm.data import Mixup

from data_pipelines.config import AugmentConfig
from data_pipelines.loading.rng import fork_rng, seed_rng


class SeededMixup:
    """timm's mixup and cutmix, one draw per micro-batch. Labels become class probabilities."""

    def __init__(self, augment: AugmentConfig, num_classes: int) -> None:
        self._mixup = Mixup(
            augment.mixup,
            augment.cutmix,
            prob=augment.mix_probability,
            switch_prob=augment.cutmix_share,
            label_smoothing=0.0,
            num_classes=num_classes,
        )

    def __call__(self, images_BCHW: torch.Tensor, labels_B: torch.Tensor, *key: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Mix normalised images in place, or event frames [T, B, C, H, W], and return them with labels float32 [B, classes].

        All frames of a sample are mixed alike. key: seeds the draw. Training uses (seed, step, number of the micro-batch in its global
        batch), so that the result does not depend on which rank has the micro-batch.
        """
        with fork_rng():
            seed_rng(*key)
            if images_BCHW.dim() == 4:
                return self._mixup(images_BCHW, labels_B)
            frames_TBCHW = images_BCHW
            mixed_BCHW, labels_BK = self._mixup(frames_TBCHW.transpose(0, 1).flatten(1, 2), labels_B)
            return mixed_BCHW.unflatten(1, (len(frames_TBCHW), -1)).transpose(0, 1).contiguous(), labels_BK
