"""QKFormer's two attention modules. Shapes: T time steps, B samples, H heads, N tokens, D channels of a head (C = H·D).

Parameter names are those of the published checkpoints.
"""

from __future__ import annotations

import torch
from torch import nn

from tdformer.models.feedback import ControlModule
from tdformer.models.layers import conv_bn
from tdformer.models.neurons import LIF, Membranes

ATTENTION_THRESHOLD = 0.5
ATTENTION_SCALE = 0.125  # the public code's constant, whatever the head's width


class TokenQKAttention(nn.Module):
    """Q-K token attention: which tokens pass is decided by the sum of q over each head's channels."""

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_conv = nn.Conv1d(channels, channels, 1, bias=False)
        self.q_bn = nn.BatchNorm1d(channels)
        self.q_lif = LIF()
        self.k_conv = nn.Conv1d(channels, channels, 1, bias=False)
        self.k_bn = nn.BatchNorm1d(channels)
        self.k_lif = LIF()
        self.attn_lif = LIF(ATTENTION_THRESHOLD)
        self.proj_conv = nn.Conv1d(channels, channels, 1)
        self.proj_bn = nn.BatchNorm1d(channels)
        self.proj_lif = LIF()

    def forward(self, x_TBCHW: torch.Tensor, membranes: Membranes) -> torch.Tensor:
        """Same shape out as in."""
        x_TBCN = x_TBCHW.flatten(3)
        heads = (self.num_heads, -1)
        q_TBHDN = self.q_lif(conv_bn(self.q_conv, self.q_bn, x_TBCN), membranes).unflatten(2, heads)
        k_TBHDN = self.k_lif(conv_bn(self.k_conv, self.k_bn, x_TBCN), membranes).unflatten(2, heads)
        mask_TBH1N = self.attn_lif(q_TBHDN.sum(3, keepdim=True), membranes)
        y_TBCN = (mask_TBH1N * k_TBHDN).flatten(2, 3)
        y_TBCN = self.proj_lif(conv_bn(self.proj_conv, self.proj_bn, y_TBCN), membranes)
        return y_TBCN.view_as(x_TBCHW)


class SpikingSelfAttention(nn.Module):
    """Spiking self-attention without softmax: q (kᵀ v), so that its cost is linear in the tokens.

    With a control module, top-down spikes take part in the keys and so steer the attention map.

    samples_share_projection: the public QKFormer code hands its projection neurons the currents with time steps
    and samples as one axis, so that a membrane goes on from each sample to the next one of the batch, and a
    result depends on the batch around it. Its published checkpoints were trained so. Off, each sample has its own.
    """

    def __init__(self, channels: int, num_heads: int, samples_share_projection: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.samples_share_projection = samples_share_projection
        self.control: ControlModule | None = None
        self.q_conv = nn.Conv1d(channels, channels, 1, bias=False)
        self.q_bn = nn.BatchNorm1d(channels)
        self.q_lif = LIF()
        self.k_conv = nn.Conv1d(channels, channels, 1, bias=False)
        self.k_bn = nn.BatchNorm1d(channels)
        self.k_lif = LIF()
        self.v_conv = nn.Conv1d(channels, channels, 1, bias=False)
        self.v_bn = nn.BatchNorm1d(channels)
        self.v_lif = LIF()
        self.attn_lif = LIF(ATTENTION_THRESHOLD)
        self.proj_conv = nn.Conv1d(channels, channels, 1)
        self.proj_bn = nn.BatchNorm1d(channels)
        self.proj_lif = LIF()

    def forward(self, x_TBCHW: torch.Tensor, topdown_TBCHW: torch.Tensor | None, membranes: Membranes) -> torch.Tensor:
        """Same shape out as in. topdown_TBCHW: the spikes S_td of the segment before, or None in the first."""
        x_TBCN = x_TBCHW.flatten(3)
        steering_TBCN = None
        if self.control is not None and topdown_TBCHW is not None:
            steering_TBCN = self.control(topdown_TBCHW.flatten(3))

        q_TBHND = self._heads(self.q_lif(conv_bn(self.q_conv, self.q_bn, x_TBCN), membranes))
        k_TBHND = self._heads(self.k_lif(conv_bn(self.k_conv, self.k_bn, x_TBCN, plus_TBC=steering_TBCN), membranes))
        v_TBHND = self._heads(self.v_lif(conv_bn(self.v_conv, self.v_bn, x_TBCN), membranes))
        kv_TBHDD = k_TBHND.transpose(-2, -1) @ v_TBHND
        y_TBHND = (q_TBHND @ kv_TBHDD) * ATTENTION_SCALE
        y_TBCN = self.attn_lif(y_TBHND.transpose(-2, -1).flatten(2, 3), membranes)
        y_TBCN = conv_bn(self.proj_conv, self.proj_bn, y_TBCN)
        if self.samples_share_projection:
            y_TBCN = y_TBCN.flatten(0, 1)
        return self.proj_lif(y_TBCN, membranes).view_as(x_TBCHW)

    def _heads(self, x_TBCN: torch.Tensor) -> torch.Tensor:
        return x_TBCN.unflatten(2, (self.num_heads, -1)).transpose(-2, -1)
