"""The pieces that every backbone is made of. Shapes: T time steps, B samples, C channels, H x W pixels."""

from __future__ import annotations

import torch
from torch import nn

from tdformer.models.neurons import LIF, Membranes


def conv_bn(
    conv: nn.Module, bn: nn.Module, x_TBC: torch.Tensor, *, pool: nn.Module | None = None, plus_TBC: torch.Tensor | None = None
) -> torch.Tensor:
    """Convolution, BatchNorm and, if given, pooling, over time steps and samples as one batch.

    plus_TBC is added to what the convolution gives, before BatchNorm.
    """
    y = conv(x_TBC.flatten(0, 1))
    if plus_TBC is not None:
        y = y + plus_TBC.flatten(0, 1)
    y = bn(y)
    if pool is not None:
        y = pool(y)
    return y.unflatten(0, x_TBC.shape[:2])


class DropPath(nn.Module):
    """Drops a residual branch for whole samples (the same ones at every time step), and scales up the others."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x_TB: torch.Tensor) -> torch.Tensor:
        if self.probability == 0 or not self.training:
            return x_TB
        keep = 1 - self.probability
        mask_B = torch.rand(x_TB.shape[1], device=x_TB.device) < keep
        return x_TB * (mask_B / keep).to(x_TB.dtype).view(1, -1, *[1] * (x_TB.dim() - 2))


class PatchEmbed(nn.Module):
    """A stage's entry that halves the resolution: conv, BN, max-pool, LIF; conv, BN, LIF; plus a strided shortcut.

    Parameter names are those of the published checkpoints (patch_embed2 and patch_embed3).
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.proj3_conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.proj3_bn = nn.BatchNorm2d(channels)
        self.pool3 = nn.MaxPool2d(3, stride=2, padding=1)
        self.proj3_lif = LIF()
        self.proj4_conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.proj4_bn = nn.BatchNorm2d(channels)
        self.proj4_lif = LIF()
        self.proj_res_conv = nn.Conv2d(in_channels, channels, 1, stride=2, bias=False)
        self.proj_res_bn = nn.BatchNorm2d(channels)
        self.proj_res_lif = LIF()

    def forward(self, x_TBCHW: torch.Tensor, membranes: Membranes) -> torch.Tensor:
        """[T, B, in_channels, H, W] -> [T, B, channels, H/2, W/2]"""
        y = self.proj3_lif(conv_bn(self.proj3_conv, self.proj3_bn, x_TBCHW, pool=self.pool3), membranes)
        y = self.proj4_lif(conv_bn(self.proj4_conv, self.proj4_bn, y), membranes)
        shortcut = self.proj_res_lif(conv_bn(self.proj_res_conv, self.proj_res_bn, x_TBCHW), membranes)
        return y + shortcut


class PatchEmbedInit(nn.Module):
    """The first stage's entry, stride 4: a conv to half the channels comes before what PatchEmbed does.

    Parameter names are those of the published checkpoints (patch_embed1).
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.proj_conv = nn.Conv2d(in_channels, channels // 2, 3, padding=1, bias=False)
        self.proj_bn = nn.BatchNorm2d(channels // 2)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.proj_lif = LIF()
        self.proj1_conv = nn.Conv2d(channels // 2, channels, 3, padding=1, bias=False)
        self.proj1_bn = nn.BatchNorm2d(channels)
        self.pool1 = nn.MaxPool2d(3, stride=2, padding=1)
        self.proj1_lif = LIF()
        self.proj2_conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.proj2_bn = nn.BatchNorm2d(channels)
        self.proj2_lif = LIF()
        self.proj_res_conv = nn.Conv2d(channels // 2, channels, 1, stride=2, bias=False)
        self.proj_res_bn = nn.BatchNorm2d(channels)
        self.proj_res_lif = LIF()

    def forward(self, x_TBCHW: torch.Tensor, membranes: Membranes) -> torch.Tensor:
        """[T, B, in_channels, H, W] -> [T, B, channels, H/4, W/4]"""
        first = self.proj_lif(conv_bn(self.proj_conv, self.proj_bn, x_TBCHW, pool=self.pool), membranes)
        y = self.proj1_lif(conv_bn(self.proj1_conv, self.proj1_bn, first, pool=self.pool1), membranes)
        y = self.proj2_lif(conv_bn(self.proj2_conv, self.proj2_bn, y), membranes)
        shortcut = self.proj_res_lif(conv_bn(self.proj_res_conv, self.proj_res_bn, first), membranes)
        return y + shortcut


class SpikingMLP(nn.Module):
    """conv1x1, BN, LIF to `ratio` times the channels, and back."""

    def __init__(self, channels: int, ratio: int) -> None:
        super().__init__()
        self.fc1_conv = nn.Conv2d(channels, channels * ratio, 1)
        self.fc1_bn = nn.BatchNorm2d(channels * ratio)
        self.fc1_lif = LIF()
        self.fc2_conv = nn.Conv2d(channels * ratio, channels, 1)
        self.fc2_bn = nn.BatchNorm2d(channels)
        self.fc2_lif = LIF()

    def forward(self, x_TBCHW: torch.Tensor, membranes: Membranes) -> torch.Tensor:
        """Same shape out as in."""
        x = self.fc1_lif(conv_bn(self.fc1_conv, self.fc1_bn, x_TBCHW), membranes)
        return self.fc2_lif(conv_bn(self.fc2_conv, self.fc2_bn, x), membranes)
