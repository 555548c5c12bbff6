"""Small networks of every kind, for tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tdformer.config import BackboneConfig, FeedbackConfig, ModelConfig

SIZES: dict[str, Any] = {"embed_dims": 32, "num_heads": 2}
BACKBONES = {
    "qkformer-imagenet": BackboneConfig(depths=(1, 1, 2), **SIZES),
    "qkformer-cifar": BackboneConfig(variant="cifar", depths=(1, 1, 2), **SIZES),
    "qkformer-dvs128": BackboneConfig(variant="dvs", depths=(1, 2), **SIZES),
    "spikformer-imagenet": BackboneConfig(family="spikformer", depths=(2,), **SIZES),
    "spikformer-cifar": BackboneConfig(family="spikformer", variant="cifar", depths=(2,), **SIZES),
    "sdt-imagenet": BackboneConfig(family="sdt", depths=(2,), **SIZES),
    "sdt-cifar": BackboneConfig(family="sdt", variant="cifar", depths=(2,), **SIZES),
    "sdt-cifar10dvs": BackboneConfig(family="sdt", variant="cifar", erode=True, depths=(2,), **SIZES),
}
IMAGE_SIZE = {name: 64 if config.stride == 16 else 32 for name, config in BACKBONES.items()}
"""Sizes at which every weight of a lively network gets a gradient."""


def small(backbone: str | BackboneConfig = "qkformer-imagenet", **changes: Any) -> ModelConfig:
    if isinstance(backbone, str):
        backbone = BACKBONES[backbone]
    return ModelConfig(**{"backbone": backbone, "num_classes": 5, "feedback": FeedbackConfig(init_std=0.3), **changes})


def lively(model: nn.Module) -> nn.Module:
    """BatchNorm gains of 2, so that neurons fire in all layers of an untrained small network: weights behind silent
    neurons rightly get no gradient."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.constant_(module.weight, 2.0)
            module.momentum = 1.0  # running statistics are those of the last batch
    return model


def images(batch: int, height: int = 32, width: int = 32, *, frames: int | None = None, channels: int = 3, seed: int = 0) -> torch.Tensor:
    """Images [B, C, H, W], or event sequences [T, B, C, H, W]."""
    shape = (batch, channels, height, width)
    return torch.randn(shape if frames is None else (frames, *shape), generator=torch.Generator().manual_seed(seed))
