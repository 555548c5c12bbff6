"""Spikformer: spiking patch splitting, then blocks of spiking self-attention at one resolution.

The public code has two variants: "imagenet" of stride 16 with 1x1 convolutions, "cifar" of stride 4 with linear maps
that have biases.
"""

from __future__ import annotations

import torch
from torch import nn

from tdformer.config import BackboneConfig
from tdformer.models.attention import SpikingSelfAttention, conv1d_maps, conv1d_projection
from tdformer.models.backbones.base import Backbone, Block, Stage, drop_path_rates, init_truncated_normal
from tdformer.models.channel_maps import ChannelConv2d, ChannelLinear
from tdformer.models.layers import (
    PatchStem,
    SpikingLayer,
    SpikingMLP,
    TypedModuleList,
    conv3x3,
    freeze_unused,
    max_pool_spikes,
    patch_splitting,
)
from tdformer.models.neuron_state import NeuronState


class SpikingPatchSplitting(PatchStem):
    """The patch embedding: four 3x3 convolutions up to D channels, plus one for positions.

    pools: whether the spikes of each of the four are max-pooled.
    """

    def __init__(self, in_channels: int, channels: int, pools: tuple[bool, bool, bool, bool]) -> None:
        super().__init__()
        self.pools = pools
        self.convolutions = patch_splitting(in_channels, channels)
        self.position = SpikingLayer(conv3x3(channels, channels))

    def forward(self, current_TBCHW: torch.Tensor, topdown_TBCHW: None, neuron_state: NeuronState) -> torch.Tensor:
        """The current of the first convolution [T, B, D/8, H, W] -> sums of two spikes [T, B, D, H/stride, W/stride]."""
        first, *others = self.convolutions
        x = first.neurons(current_TBCHW, neuron_state)
        for layer, pools_before in zip(others, self.pools[:3], strict=True):
            x = layer(max_pool_spikes(x) if pools_before else x, neuron_state)
        x = max_pool_spikes(x) if self.pools[3] else x
        return x + self.position(x, neuron_state)


class SpikformerBlock(Block):
    """A block with two LayerNorms that published checkpoints hold, and that the forward pass never reads."""

    def __init__(self, config: BackboneConfig, drop_path: float) -> None:
        channels, is_cifar = config.embed_dims, config.variant == "cifar"
        maps, projection, mlp = (ChannelLinear,) * 3 if is_cifar else (conv1d_maps, conv1d_projection, ChannelConv2d)
        attn = SpikingSelfAttention(channels, config.num_heads, maps=maps, projection=projection)
        super().__init__(attn, SpikingMLP(channels, config.mlp_ratio, mlp), drop_path)
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        freeze_unused(self.norm1, self.norm2)


class Spikformer(Backbone):
    """Spikformer: one stage, whose blocks can all be under top-down control."""

    def __init__(self, config: BackboneConfig, num_classes: int, time_steps: int) -> None:
        super().__init__(config, num_classes, time_steps)
        patch_embed = SpikingPatchSplitting(config.in_channels, config.embed_dims, config.pools)
        blocks = (SpikformerBlock(config, drop_path) for drop_path in drop_path_rates(config))
        self.stages = TypedModuleList([Stage(patch_embed, blocks)])
        init_truncated_normal(self, nn.Linear)
