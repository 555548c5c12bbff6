"""Spike-driven Transformer V1: with membrane shortcuts, blocks hand on currents, and neurons come first in each block.

The public configurations differ in where they pool: ImageNet's network has stride 16, CIFAR's and CIFAR10-DVS's 4, and
DVS128 Gesture's 8. The attention of the one for CIFAR10-DVS erodes.
"""

from __future__ import annotations

import torch
from torch import nn

from tdformer.config import BackboneConfig
from tdformer.models.attention import SpikeDrivenAttention
from tdformer.models.backbones.base import Backbone, Block, Stage, drop_path_rates, init_truncated_normal
from tdformer.models.channel_maps import ChannelConv2d
from tdformer.models.layers import CurrentLayer, MembraneMLP, PatchStem, TypedModuleList, conv3x3, max_pool_spikes, patch_splitting
from tdformer.models.neuron_state import NeuronState
from tdformer.models.neurons import LIF


class MembranePatchSplitting(PatchStem):
    """The patch embedding: four 3x3 convolutions up to D channels, and one for positions beside a membrane shortcut.

    pools: whether each of the four is max-pooled, the first three in their spikes, the last in its current.
    """

    def __init__(self, in_channels: int, channels: int, pools: tuple[bool, bool, bool, bool]) -> None:
        super().__init__()
        self.pools = pools
        self.convolutions = patch_splitting(in_channels, channels, last_pools=pools[3])
        self.position = CurrentLayer(conv3x3(channels, channels))

    def forward(self, current_TBCHW: torch.Tensor, topdown_TBCHW: None, neuron_state: NeuronState) -> torch.Tensor:
        """The current of the first convolution [T, B, D/8, H, W] -> currents [T, B, D, H/stride, W/stride]."""
        first, second, third, last = self.convolutions
        x = first.neurons(current_TBCHW, neuron_state)
        for layer, pools_before in ((second, self.pools[0]), (third, self.pools[1])):
            x = layer(max_pool_spikes(x) if pools_before else x, neuron_state)
        shortcut = last.current(max_pool_spikes(x) if self.pools[2] else x)
        # The blocks add to the shortcut as to a membrane potential, so it stays fp32 under autocast.
        shortcut = shortcut.to(torch.promote_types(shortcut.dtype, torch.float32))
        return self.position.current(last.neurons(shortcut, neuron_state)) + shortcut


class SpikeDrivenTransformer(Backbone):
    """Spike-driven Transformer V1: one stage, whose blocks can all be under top-down control."""

    sums_of_spikes = False

    def __init__(self, config: BackboneConfig, num_classes: int, time_steps: int) -> None:
        super().__init__(config, num_classes, time_steps)
        patch_embed = MembranePatchSplitting(config.in_channels, config.embed_dims, config.pools)
        blocks = (_block(config, drop_path) for drop_path in drop_path_rates(config))
        self.stages = TypedModuleList([Stage(patch_embed, blocks)])
        self.head_lif = LIF()
        init_truncated_normal(self, nn.Conv2d)

    def head_spikes(self, h_TBC: torch.Tensor, neuron_state: NeuronState) -> torch.Tensor:
        """Turn the mean currents into spikes."""
        return self.head_lif(h_TBC, neuron_state)


def _block(config: BackboneConfig, drop_path: float) -> Block:
    attn = SpikeDrivenAttention(config.embed_dims, config.num_heads, erode=config.erode)
    return Block(attn, MembraneMLP(config.embed_dims, config.mlp_ratio, ChannelConv2d), drop_path)
