"""QKFormer ("HST-L-D"): patch embeddings by convolutions, and attention blocks, over two or three stages.

The public code has three variants: "imagenet" and "dvs" of stride 16, "cifar" of stride 4.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import nn

from tdformer.config import BackboneConfig
from tdformer.models.attention import SpikingSelfAttention, TokenQKAttention
from tdformer.models.backbones.base import Backbone, Block, Stage, drop_path_rates, init_truncated_normal
from tdformer.models.channel_maps import ChannelConv2d, StridedChannelConv2d
from tdformer.models.layers import PatchStem, SpikingLayer, SpikingMLP, TypedModuleList, conv3x3
from tdformer.models.neuron_state import NeuronState


class Convolution(NamedTuple):
    """A 3x3 convolution of a patch embedding: it has 1/part of the stage's channels, and a max-pool follows it or not."""

    part: int
    pools: bool


class Entry(NamedTuple):
    """The convolutions of a patch embedding, and after how many of them the shortcut leaves."""

    convolutions: tuple[Convolution, ...]
    shortcut_after: int


class Entries(NamedTuple):
    """The patch embeddings of one variant."""

    first: Entry
    later: Entry


ENTRIES = {
    "imagenet": Entries(
        first=Entry((Convolution(2, True), Convolution(1, True), Convolution(1, False)), shortcut_after=1),
        later=Entry((Convolution(1, True), Convolution(1, False)), shortcut_after=0),
    ),
    "cifar": Entries(
        first=Entry((Convolution(2, False), Convolution(1, False)), shortcut_after=1),
        later=Entry((Convolution(1, False), Convolution(1, True)), shortcut_after=0),
    ),
    "dvs": Entries(
        first=Entry((Convolution(8, False), Convolution(4, True), Convolution(2, True), Convolution(1, True)), shortcut_after=2),
        later=Entry((Convolution(1, False), Convolution(1, True)), shortcut_after=0),
    ),
}


class PatchEmbed(PatchStem):
    """The patch embedding of a stage: 3x3 convolutions, plus a strided 1x1 convolution as the shortcut."""

    def __init__(self, in_channels: int, channels: int, entry: Entry) -> None:
        super().__init__()
        self.shortcut_after = entry.shortcut_after
        widths = [in_channels, *(channels // convolution.part for convolution in entry.convolutions)]
        self.convolutions = TypedModuleList[SpikingLayer](
            SpikingLayer(conv3x3(width, next_width), pools=convolution.pools)
            for (width, next_width), convolution in zip(pairwise(widths), entry.convolutions, strict=True)
        )
        stride = 2 ** sum(convolution.pools for convolution in entry.convolutions[entry.shortcut_after :])
        self.shortcut = SpikingLayer(StridedChannelConv2d(widths[entry.shortcut_after], channels, stride))

    def forward(self, x_TBCHW: torch.Tensor, topdown_TBCHW: None, neuron_state: NeuronState) -> torch.Tensor:
        """[T, B, in_channels, H, W] -> [T, B, channels, H/stride, W/stride], sums of two spikes.

        In a network's first patch embedding, where the shortcut leaves later, x is the current of the first convolution.
        """
        shortcut = x_TBCHW
        for index, layer in enumerate(self.convolutions):
            is_current = index == 0 and self.shortcut_after > 0
            x_TBCHW = layer.neurons(x_TBCHW, neuron_state) if is_current else layer(x_TBCHW, neuron_state)
            if index + 1 == self.shortcut_after:
                shortcut = x_TBCHW
        return x_TBCHW + self.shortcut(shortcut, neuron_state)


class QKFormer(Backbone):
    """QKFormer: every stage doubles the channels, up to `embed_dims` in the last one.

    The last stage has spiking self-attention, the others have token Q-K attention.
    """

    def __init__(self, config: BackboneConfig, num_classes: int, time_steps: int) -> None:
        super().__init__(config, num_classes, time_steps)
        self.stages = TypedModuleList[Stage](_stages(config))
        init_truncated_normal(self, nn.Linear)


def _stages(config: BackboneConfig) -> Iterator[Stage]:
    entries, drop_paths = ENTRIES[config.variant], iter(drop_path_rates(config))
    width, last = config.in_channels, len(config.depths) - 1
    for index, depth in enumerate(config.depths):
        channels = config.embed_dims // 2 ** (last - index)
        patch_embed = PatchEmbed(width, channels, entries.later if index else entries.first)
        yield Stage(patch_embed, (_block(config, channels, index == last, next(drop_paths)) for _ in range(depth)))
        width = channels


def _block(config: BackboneConfig, channels: int, is_in_last_stage: bool, drop_path: float) -> Block:
    # The MLP draws its initial weights before the attention: a seed keeps giving the same network.
    mlp = SpikingMLP(channels, config.mlp_ratio, ChannelConv2d)
    if is_in_last_stage:
        return Block(SpikingSelfAttention(channels, config.num_heads, config.samples_share_projection), mlp, drop_path)
    return Block(TokenQKAttention(channels, config.num_heads), mlp, drop_path)
