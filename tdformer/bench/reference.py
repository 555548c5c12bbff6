"""Makes the reference network of the benchmarks: spikingjelly's own QKFormer, with the same sizes as ours."""

from __future__ import annotations

from torch import nn

from tdformer.config import ModelConfig

REFERENCE = "spikingjelly-qkformer"
"""The name of the reference in the rows of results."""


def has_reference(config: ModelConfig) -> bool:
    """Return whether spikingjelly has a network like this one. It has the ImageNet variant of QKFormer alone."""
    return (config.backbone.family, config.backbone.variant) == ("qkformer", "imagenet")


def make_reference(config: ModelConfig, time_steps: int) -> nn.Module:
    """Make spikingjelly's QKFormer with the backbone sizes of `config`. Its input is [B, C, H, W], its output logits [B, num_classes]."""
    from spikingjelly.activation_based.model.qkformer import QKFormer

    backbone, (first, second, last) = config.backbone, config.backbone.depths
    heads, depths = (backbone.num_heads,) * 3, (first, second, last)
    return QKFormer(time_steps, backbone.in_channels, config.num_classes, backbone.embed_dims, heads, depths, backbone.mlp_ratio)
