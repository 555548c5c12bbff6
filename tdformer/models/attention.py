"""The backbones' attention modules. Shapes: T time steps, B samples, H heads, N tokens, D channels of a head (C = H·D).

All are called as attention(x, top-down spikes or None, neuron_state). In an attention that has a control module, the top-down
spikes of the segment before take part.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from tdformer.models.channel_maps import ChannelConv1d, ChannelConv2d, Pointwise, channels_are_last
from tdformer.models.feedback import ControlModule
from tdformer.models.kernels import attention as kernels
from tdformer.models.layers import CurrentLayer, SpikingLayer, freeze_unused
from tdformer.models.neuron_state import NeuronState
from tdformer.models.neurons import LIF

ATTENTION_THRESHOLD = 0.5
ATTENTION_SCALE = 0.125
"""The public code has this constant whatever the head's width."""

conv1d_maps = partial(ChannelConv1d, bias=False)
"""Makes the maps to queries, keys and values, which have no bias."""
conv1d_projection = partial(ChannelConv1d, bias=True)
"""Makes the map behind the attention, which has a bias."""


class TokenQKAttention(nn.Module):
    """Q-K token attention: the sum of q over each head's channels decides which tokens of k pass. Without top-down control."""

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = SpikingLayer(conv1d_maps(channels, channels))
        self.k = SpikingLayer(conv1d_maps(channels, channels))
        self.attn_lif = LIF(ATTENTION_THRESHOLD)
        self.proj = SpikingLayer(conv1d_projection(channels, channels))

    def forward(self, x_TBCHW: torch.Tensor, topdown_TBCHW: None, neuron_state: NeuronState) -> torch.Tensor:
        """Return spikes in the shape of x."""
        heads = (self.num_heads, -1)
        q_TBHDN = self.q(x_TBCHW, neuron_state).unflatten(2, heads)
        k_TBHDN = self.k(x_TBCHW, neuron_state).unflatten(2, heads)
        mask_TBH1N = self.attn_lif(q_TBHDN.sum(3, keepdim=True), neuron_state)
        return self.proj((k_TBHDN * mask_TBH1N).flatten(2, 3), neuron_state).view_as(x_TBCHW)


class ControlledAttention(nn.Module):
    """The base of the attentions that can be under top-down control."""

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.control: ControlModule | None = None

    def steering(self, topdown_TBCHW: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """Return {target: what is added to it}, the target being "key", "value" or "input".

        The result is empty without a control module, and in the first segment.
        """
        if self.control is None or topdown_TBCHW is None:
            return {}
        return {self.control.target: self.control(topdown_TBCHW)}

    def heads(self, x_TBC: torch.Tensor) -> torch.Tensor:
        """Split channels into heads: [T, B, C, N] or [T, B, C, H, W] -> [T, B, heads, N, D]."""
        return x_TBC.flatten(3).unflatten(2, (self.num_heads, -1)).transpose(-2, -1)

    def joined(self, y_TBHND: torch.Tensor, like_TBCHW: torch.Tensor) -> torch.Tensor:
        """Join the heads: [T, B, heads, N, D] -> [T, B, C, N], in the memory layout of `like`."""
        if channels_are_last(like_TBCHW.flatten(0, 1)):
            return y_TBHND.transpose(2, 3).flatten(3).movedim(-1, 2)
        return y_TBHND.transpose(-2, -1).flatten(2, 3)


class SpikingSelfAttention(ControlledAttention):
    """Spiking self-attention without softmax, of QKFormer and Spikformer: q (kᵀ v), at a cost linear in the tokens.

    samples_share_projection: the public QKFormer code hands its projection neurons the currents with time steps
    and samples as one axis. A potential then goes on from each sample to the next one of the batch, and a result
    depends on its batch. The published checkpoints were trained so. If false, each sample has potentials of its own.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        samples_share_projection: bool = False,
        maps: Pointwise = conv1d_maps,
        projection: Pointwise = conv1d_projection,
    ) -> None:
        super().__init__(num_heads)
        self.samples_share_projection = samples_share_projection
        self.q = SpikingLayer(maps(channels, channels))
        self.k = SpikingLayer(maps(channels, channels))
        self.v = SpikingLayer(maps(channels, channels))
        self.attn_lif = LIF(ATTENTION_THRESHOLD)
        self.proj = SpikingLayer(projection(channels, channels))

    def forward(self, x_TBCHW: torch.Tensor, topdown_TBCHW: torch.Tensor | None, neuron_state: NeuronState) -> torch.Tensor:
        """Return spikes in the shape of x. topdown_TBCHW: the spikes S_td of the segment before, or None in the first."""
        plus, shape = self.steering(topdown_TBCHW), x_TBCHW.shape
        if "input" in plus:
            x_TBCHW = x_TBCHW + plus["input"].view(shape)
        q_TBC = self.q(x_TBCHW, neuron_state)
        k_TBC = self.k(x_TBCHW, neuron_state, plus_TBC=plus.get("key"))
        v_TBC = self.v(x_TBCHW, neuron_state, plus_TBC=plus.get("value"))
        y_TBCN = self.attn_lif(self._attended(q_TBC, k_TBC, v_TBC, x_TBCHW), neuron_state)
        if self.samples_share_projection:
            return self.proj.neurons(self.proj.current(y_TBCN).flatten(0, 1), neuron_state).view(shape)
        return self.proj(y_TBCN, neuron_state).view(shape)

    def _attended(self, q_TBC: torch.Tensor, k_TBC: torch.Tensor, v_TBC: torch.Tensor, like_TBCHW: torch.Tensor) -> torch.Tensor:
        if self.attn_lif.fused and kernels.takes(q_TBC, self.num_heads):
            return kernels.attention(q_TBC, k_TBC, v_TBC, self.num_heads, ATTENTION_SCALE)
        q_TBHND, k_TBHND, v_TBHND = map(self.heads, (q_TBC, k_TBC, v_TBC))
        return self.joined((q_TBHND @ (k_TBHND.transpose(-2, -1) @ v_TBHND)) * ATTENTION_SCALE, like_TBCHW)


class SpikeDrivenAttention(ControlledAttention):
    """Spike-driven attention: per channel, tokens vote by k·v whether q passes. Currents in, currents out.

    erode: for CIFAR10-DVS the public code max-pools keys, values and results over 3 x 3 neighbours. At that place in
    the code these are neighbours among tokens and channels.
    """

    def __init__(self, channels: int, num_heads: int, erode: bool) -> None:
        super().__init__(num_heads)
        self.erode = erode
        self.shortcut_lif = LIF()
        self.q = SpikingLayer(ChannelConv2d(channels, channels, bias=False))
        self.k = SpikingLayer(ChannelConv2d(channels, channels, bias=False))
        self.v = SpikingLayer(ChannelConv2d(channels, channels, bias=False))
        self.talking_heads = nn.Conv1d(num_heads, num_heads, 1, bias=False)
        freeze_unused(self.talking_heads)
        self.talking_heads_lif = LIF(ATTENTION_THRESHOLD)
        self.proj = CurrentLayer(ChannelConv2d(channels, channels))

    def forward(self, x_TBCHW: torch.Tensor, topdown_TBCHW: torch.Tensor | None, neuron_state: NeuronState) -> torch.Tensor:
        """Return currents in the shape of x. topdown_TBCHW: the spikes S_td of the segment before, or None in the first."""
        plus, shape = self.steering(topdown_TBCHW), x_TBCHW.shape
        if "input" in plus:
            x_TBCHW = x_TBCHW + plus["input"].view(shape)
        s_TBCHW = self.shortcut_lif(x_TBCHW, neuron_state)
        q_TBHND = self.heads(self.q(s_TBCHW, neuron_state))
        k_TBHND = self.heads(self._eroded(self.k(s_TBCHW, neuron_state, plus_TBC=plus.get("key"))))
        v_TBHND = self.heads(self._eroded(self.v(s_TBCHW, neuron_state, plus_TBC=plus.get("value"))))
        votes_TBH1D = self._eroded(k_TBHND * v_TBHND).sum(-2, keepdim=True)
        y_TBHND = self._eroded(q_TBHND * self.talking_heads_lif(votes_TBH1D, neuron_state))
        return self.proj.current(self.joined(y_TBHND, x_TBCHW).view(shape))

    def _eroded(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.max_pool3d(x, (1, 3, 3), stride=1, padding=(0, 1, 1)) if self.erode else x
