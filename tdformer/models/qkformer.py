"""QKFormer, ImageNet variant: convolutional entries and attention blocks over three stages, stride 16.

Knows nothing of segments: TDFormer cuts it into `bottom_up` (all but the last stage's blocks) and `transform`
(those blocks). Module names are those of the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from tdformer.config import BackboneConfig
from tdformer.models.attention import SpikingSelfAttention, TokenQKAttention
from tdformer.models.layers import DropPath, PatchEmbed, PatchEmbedInit, SpikingMLP
from tdformer.models.neurons import Membranes


class TokenBlock(nn.Module):
    """x + token Q-K attention; x + MLP."""

    def __init__(self, channels: int, config: BackboneConfig, drop_path: float) -> None:
        super().__init__()
        self.tssa = TokenQKAttention(channels, config.num_heads)
        self.mlp = SpikingMLP(channels, config.mlp_ratio)
        self.drop_path = DropPath(drop_path)

    def forward(self, x_TBCHW: torch.Tensor, membranes: Membranes) -> torch.Tensor:
        x = x_TBCHW + self.drop_path(self.tssa(x_TBCHW, membranes))
        return x + self.drop_path(self.mlp(x, membranes))


class SpikingBlock(nn.Module):
    """x + spiking self-attention, under top-down control if its attention has a control module; x + MLP."""

    def __init__(self, channels: int, config: BackboneConfig, drop_path: float) -> None:
        super().__init__()
        self.attn = SpikingSelfAttention(channels, config.num_heads, config.samples_share_projection)
        self.mlp = SpikingMLP(channels, config.mlp_ratio)
        self.drop_path = DropPath(drop_path)

    def forward(self, x_TBCHW: torch.Tensor, topdown_TBCHW: torch.Tensor | None, membranes: Membranes) -> torch.Tensor:
        x = x_TBCHW + self.drop_path(self.attn(x_TBCHW, topdown_TBCHW, membranes))
        return x + self.drop_path(self.mlp(x, membranes))


class QKFormer(nn.Module):
    """The backbone. Its own `forward` is the plain network without a top-down path."""

    stride = 16

    def __init__(self, config: BackboneConfig, num_classes: int, time_steps: int, in_channels: int = 3) -> None:
        super().__init__()
        self.time_steps = time_steps
        dims = (config.embed_dims // 4, config.embed_dims // 2, config.embed_dims)
        self.num_features = dims[2]
        rates = iter(torch.linspace(0, config.drop_path, sum(config.depths), device="cpu").tolist())

        def stage(block: Callable[..., nn.Module], index: int) -> nn.ModuleList:
            return nn.ModuleList(block(dims[index], config, next(rates)) for _ in range(config.depths[index]))

        self.patch_embed1 = PatchEmbedInit(in_channels, dims[0])
        self.stage1 = stage(TokenBlock, 0)
        self.patch_embed2 = PatchEmbed(dims[0], dims[1])
        self.stage2 = stage(TokenBlock, 1)
        self.patch_embed3 = PatchEmbed(dims[1], dims[2])
        self.stage3 = stage(SpikingBlock, 2)
        self.head = nn.Linear(dims[2], num_classes)
        self.apply(_init_weights)

    def controlled(self, block: int) -> SpikingSelfAttention:
        """The attention of one block of the last stage, where a control module can be put."""
        attention = self.stage3[block].attn
        assert isinstance(attention, SpikingSelfAttention)
        return attention

    def bottom_up(self, x_TBCHW: torch.Tensor, membranes: Membranes) -> torch.Tensor:
        """Images [T, B, 3, H, W] -> spikes S_bu [T, B, D, H/16, W/16] (sums of up to two spikes)."""
        x = self.patch_embed1(x_TBCHW, membranes)
        for block in self.stage1:
            x = block(x, membranes)
        x = self.patch_embed2(x, membranes)
        for block in self.stage2:
            x = block(x, membranes)
        return self.patch_embed3(x, membranes)

    def transform(self, s_TBCHW: torch.Tensor, topdown_TBCHW: torch.Tensor | None, membranes: Membranes) -> torch.Tensor:
        """The last stage's blocks, F_tr: S_bu and the top-down spikes (or None) -> features, same shape."""
        for block in self.stage3:
            s_TBCHW = block(s_TBCHW, topdown_TBCHW, membranes)
        return s_TBCHW

    def forward_features(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Images [B, 3, H, W], repeated at every time step -> [T, B, D, H/16, W/16]."""
        x_TBCHW = x_BCHW.expand(self.time_steps, *x_BCHW.shape)
        membranes = Membranes()
        return self.transform(self.bottom_up(x_TBCHW, membranes), None, membranes)

    def forward_head(self, h_TBCHW: torch.Tensor) -> torch.Tensor:
        """Features -> logits [B, classes]: mean over tokens, mean over time steps, linear."""
        return self.head(h_TBCHW.flatten(3).mean(3).mean(0))

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Images [B, 3, H, W] -> logits [B, classes]."""
        return self.forward_head(self.forward_features(x_BCHW))


def _init_weights(module: nn.Module) -> None:
    """As in the public code: truncated normal for the head, 1 and 0 for BatchNorm; convolutions keep torch's default."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
