"""QKFormer ("HST-L-D"): convolutional entries and attention blocks over two or three stages.

Three variants, as the public code has them: "imagenet" and "dvs" of stride 16, "cifar" of stride 4. Module names are
those of the published checkpoints, which differ between the variants.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from tdformer.config import BackboneConfig
from tdformer.models.attention import SpikingSelfAttention, TokenQKAttention
from tdformer.models.backbones.base import Backbone, init_truncated_normal
from tdformer.models.channel_maps import ChannelConv2d
from tdformer.models.layers import PatchStem, SpikingMLP, conv3x3
from tdformer.models.neuron_state import NeuronState


class Entry(NamedTuple):
    """A stage's entry: 3x3 convolutions (group, part of the stage's channels, whether a max-pool follows), and after how many
    of them the shortcut leaves."""

    convolutions: tuple[tuple[str, int, bool], ...]
    shortcut_after: int


class Variant(NamedTuple):
    first: Entry
    later: Entry
    mlp: str
    self_attention: str


VARIANTS = {
    "imagenet": Variant(
        first=Entry((("proj_{}", 2, True), ("proj1_{}", 1, True), ("proj2_{}", 1, False)), shortcut_after=1),
        later=Entry((("proj3_{}", 1, True), ("proj4_{}", 1, False)), shortcut_after=0),
        mlp="fc",
        self_attention="attn",
    ),
    "cifar": Variant(
        first=Entry((("proj_{}", 2, False), ("proj1_{}", 1, False)), shortcut_after=1),
        later=Entry((("proj3_{}", 1, False), ("proj4_{}", 1, True)), shortcut_after=0),
        mlp="mlp",
        self_attention="ssa",
    ),
    "dvs": Variant(
        first=Entry((("proj_{}", 8, False), ("proj1_{}", 4, True), ("proj2_{}", 2, True), ("proj3_{}", 1, True)), shortcut_after=2),
        later=Entry((("proj_{}", 1, False), ("proj4_{}", 1, True)), shortcut_after=0),
        mlp="mlp",
        self_attention="ssa",
    ),
}


class PatchEmbed(PatchStem):
    """A stage's entry: convolutions, BN, pooling where its variant has it, LIF; plus a strided 1x1 shortcut."""

    def __init__(self, in_channels: int, channels: int, entry: Entry) -> None:
        super().__init__()
        self.entry, width, widths = entry, in_channels, [in_channels]
        for group, part, _ in entry.convolutions:
            self.add(group, conv3x3(width, channels // part))
            width = channels // part
            widths.append(width)
        stride = 2 ** sum(pool for _, _, pool in entry.convolutions[entry.shortcut_after :])
        self.add("proj_res_{}", nn.Conv2d(widths[entry.shortcut_after], channels, 1, stride=stride, bias=False))
        self.stem_pools = entry.convolutions[0][2]

    def forward(self, x_TBCHW: torch.Tensor, topdown_TBCHW: None, neuron_state: NeuronState) -> torch.Tensor:
        """[T, B, in_channels, H, W] -> [T, B, channels, H/stride, W/stride], sums of two spikes.

        If the shortcut leaves after the first convolution or later (a network's first entry), x is that convolution's current.
        """
        shortcut = x_TBCHW
        for index, (group, _, pool) in enumerate(self.entry.convolutions):
            is_current = index == 0 and self.entry.shortcut_after > 0
            x_TBCHW = self.spikes(group, x_TBCHW, neuron_state) if is_current else self.fire(group, x_TBCHW, neuron_state, pool=pool)
            if index + 1 == self.entry.shortcut_after:
                shortcut = x_TBCHW
        return x_TBCHW + self.fire("proj_res_{}", shortcut, neuron_state)


class QKFormer(Backbone):
    """All stages but the last have token Q-K attention, the last spiking self-attention; each halves or keeps the resolution
    and doubles the channels up to `embed_dims`."""

    def __init__(self, config: BackboneConfig, num_classes: int, time_steps: int) -> None:
        super().__init__(config, num_classes, time_steps)
        variant, self.stages = VARIANTS[config.variant], len(config.depths)
        width = config.in_channels
        for stage, depth in enumerate(config.depths, start=1):
            channels = config.embed_dims // 2 ** (self.stages - stage)
            self.add_module(f"patch_embed{stage}", PatchEmbed(width, channels, variant.first if stage == 1 else variant.later))
            last = stage == self.stages

            def make(channels: int = channels, last: bool = last) -> tuple[nn.Module, nn.Module]:
                mlp = SpikingMLP(channels, config.mlp_ratio, ChannelConv2d, variant.mlp)
                if last:
                    return SpikingSelfAttention(channels, config.num_heads, config.samples_share_projection), mlp
                return TokenQKAttention(channels, config.num_heads), mlp

            self.add_module(f"stage{stage}", self._blocks(depth, make, variant.self_attention if last else "tssa"))
            width = channels
        init_truncated_normal(self, nn.Linear)

    @property
    def patch_stem(self) -> PatchEmbed:
        return self.get_submodule("patch_embed1")  # type: ignore[return-value]

    def bottom_up(self) -> list[nn.Module]:
        """S_bu: sums of up to two spikes."""
        modules: list[nn.Module] = []
        for stage in range(1, self.stages):
            modules += [self.get_submodule(f"patch_embed{stage}"), *self.get_submodule(f"stage{stage}").children()]
        return [*modules, self.get_submodule(f"patch_embed{self.stages}")]

    def transform(self) -> nn.ModuleList:
        return self.get_submodule(f"stage{self.stages}")  # type: ignore[return-value]
