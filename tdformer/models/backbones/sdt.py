"""Spike-driven Transformer V1: membrane shortcuts, so that what blocks hand on are currents, and neurons come first in each.

Three variants by where the public configurations pool: "imagenet" of stride 16, "cifar" of stride 4, "dvs" of stride 8
(with eroding attention). Module names are those of the published checkpoints.
"""

from __future__ import annotations

import torch
from torch import nn

from tdformer.config import BackboneConfig
from tdformer.models.attention import SpikeDrivenAttention
from tdformer.models.backbones.base import SingleStage, init_truncated_normal
from tdformer.models.channel_maps import ChannelConv2d
from tdformer.models.layers import MembraneMLP, PatchSplitting, max_pool_spikes
from tdformer.models.neuron_state import NeuronState
from tdformer.models.neurons import LIF


class MembranePatchSplitting(PatchSplitting):
    """Four 3x3 convolutions up to D channels, pooled where the variant says; the last one's current is the shortcut."""

    def forward(self, current_TBCHW: torch.Tensor, topdown_TBCHW: None, neuron_state: NeuronState) -> torch.Tensor:
        """The first group's current [T, B, D/8, H, W] -> currents [T, B, D, H/stride, W/stride]."""
        x = self.spikes("proj_{}", current_TBCHW, neuron_state)
        for number, pools_before in zip(("1", "2"), self.pools, strict=False):
            x = max_pool_spikes(x) if pools_before else x
            x = self.fire("proj_{}" + number, x, neuron_state)
        x = max_pool_spikes(x) if self.pools[2] else x
        shortcut = self.current("proj_{}3", x, pool=self.pools[3])
        # What blocks add to stays fp32 under autocast: it is a membrane potential in all but name.
        shortcut = shortcut.to(torch.promote_types(shortcut.dtype, torch.float32))
        return self.current("rpe_{}", self.spikes("proj_{}3", shortcut, neuron_state)) + shortcut


class SpikeDrivenTransformer(SingleStage):
    sums_of_spikes = False

    def __init__(self, config: BackboneConfig, num_classes: int, time_steps: int) -> None:
        super().__init__(config, num_classes, time_steps)
        channels = config.embed_dims
        self.patch_embed = MembranePatchSplitting(config.in_channels, channels, config.pools, position_neurons=False)

        def make() -> tuple[nn.Module, nn.Module]:
            attention = SpikeDrivenAttention(channels, config.num_heads, erode=config.variant == "dvs")
            return attention, MembraneMLP(channels, config.mlp_ratio, ChannelConv2d)

        self.block = self._blocks(config.depths[0], make)
        self.head_lif = LIF()
        init_truncated_normal(self, nn.Conv2d)

    def head_spikes(self, h_TBC: torch.Tensor, neuron_state: NeuronState) -> torch.Tensor:
        return self.head_lif(h_TBC, neuron_state)
