"""The network that ours are measured beside: spikingjelly's own QKFormer, of the same sizes."""

from __future__ import annotations

from torch import nn

from tdformer.config import ModelConfig

REFERENCE = "spikingjelly-qkformer"


def is_like(config: ModelConfig) -> bool:
    """Whether spikingjelly has such a network: an ImageNet QKFormer."""
    return (config.backbone.family, config.backbone.variant) == ("qkformer", "imagenet")


def make_reference(config: ModelConfig, time_steps: int) -> nn.Module:
    from spikingjelly.activation_based.model.qkformer import QKFormer

    backbone, (first, second, last) = config.backbone, config.backbone.depths
    heads, depths = (backbone.num_heads,) * 3, (first, second, last)
    return QKFormer(time_steps, backbone.in_channels, config.num_classes, backbone.embed_dims, heads, depths, backbone.mlp_ratio)
