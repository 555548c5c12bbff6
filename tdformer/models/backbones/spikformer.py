"""Spikformer: spiking patch splitting, then blocks of spiking self-attention at one resolution.

Two variants, as the public code has them: "imagenet" of stride 16 with 1x1 convolutions, "cifar" of stride 4 with linear
maps that have biases. Module names are those of the published checkpoints.
"""

from __future__ import annotations

import torch
from torch import nn

from tdformer.config import BackboneConfig
from tdformer.models.attention import SpikingSelfAttention, conv1d_maps, conv1d_projection
from tdformer.models.backbones.base import SingleStage, init_truncated_normal
from tdformer.models.channel_maps import ChannelConv2d, ChannelLinear
from tdformer.models.layers import PatchSplitting, SpikingMLP, freeze_unused, max_pool_spikes
from tdformer.models.neuron_state import NeuronState


class SpikingPatchSplitting(PatchSplitting):
    """Four 3x3 convolutions up to D channels, spikes pooled where the variant says; plus one convolution for positions."""

    def forward(self, current_TBCHW: torch.Tensor, topdown_TBCHW: None, neuron_state: NeuronState) -> torch.Tensor:
        """The first group's current [T, B, D/8, H, W] -> sums of two spikes [T, B, D, H/stride, W/stride]."""
        x = self.spikes("proj_{}", current_TBCHW, neuron_state)
        for number, pools_before in zip(("1", "2", "3"), self.pools, strict=False):
            x = max_pool_spikes(x) if pools_before else x
            x = self.fire("proj_{}" + number, x, neuron_state)
        x = max_pool_spikes(x) if self.pools[3] else x
        return x + self.fire("rpe_{}", x, neuron_state)


class Spikformer(SingleStage):
    def __init__(self, config: BackboneConfig, num_classes: int, time_steps: int) -> None:
        super().__init__(config, num_classes, time_steps)
        channels, cifar = config.embed_dims, config.variant == "cifar"
        self.patch_embed = SpikingPatchSplitting(config.in_channels, channels, config.pools, position_neurons=True)

        def make() -> tuple[nn.Module, nn.Module]:
            maps, projection, mlp = (ChannelLinear,) * 3 if cifar else (conv1d_maps, conv1d_projection, ChannelConv2d)
            attention = SpikingSelfAttention(channels, config.num_heads, maps=maps, projection=projection)
            return attention, SpikingMLP(channels, config.mlp_ratio, mlp)

        self.block = self._blocks(config.depths[0], make)
        for block in self.block:
            block.norm1, block.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
            freeze_unused(block.norm1, block.norm2)
        init_truncated_normal(self, nn.Linear)
