"""Maps over channels (1x1 convolutions, linear layers) that keep the memory layout of their input.

The layout is pixel after pixel within a channel, or channel after channel within a pixel (torch's channels_last).
Shapes: B samples, C channels, N = H·W tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

Pointwise = Callable[[int, int], nn.Conv2d | nn.Conv1d | nn.Linear]
"""Makes a map over channels: (channels in, channels out) -> its layer."""
CHANNELS_OF_A_REGISTER = 16
"""Float32 values in the widest vector register of a CPU, that of AVX-512."""


class ChannelLinear(nn.Linear):
    """Applies nn.Linear over the channels of [B, C, N]. Published CIFAR Spikformers have such maps."""

    def forward(self, x_BCN: torch.Tensor) -> torch.Tensor:
        return map_channels(x_BCN, self.weight[..., None], self.bias)


class ChannelConv1d(nn.Conv1d):
    """Maps the channels of [B, C, N]."""

    def __init__(self, channels_in: int, channels_out: int, bias: bool) -> None:
        super().__init__(channels_in, channels_out, 1, bias=bias)

    def forward(self, x_BCN: torch.Tensor) -> torch.Tensor:
        return map_channels(x_BCN, self.weight, self.bias)


class ChannelConv2d(nn.Conv2d):
    """Maps the channels of [B, C, H, W]."""

    def __init__(self, channels_in: int, channels_out: int, bias: bool = True) -> None:
        super().__init__(channels_in, channels_out, 1, bias=bias)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        return map_channels(x_BCHW, self.weight, self.bias)


class StridedChannelConv2d(nn.Conv2d):
    """Maps the channels of [B, C, H, W], of one pixel in `stride` each way.

    On a CPU, if the channels are few and last, it takes these pixels first. With a stride of its own, oneDNN would write beyond its memory
    in the backward pass, if the channels fill no vector register (its issue 6035; seen in torch 2.15 with 4 channels and AVX2).
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__(channels_in, channels_out, 1, stride=stride, bias=False)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        if not (x_BCHW.is_cpu and channels_are_last(x_BCHW) and self.in_channels < CHANNELS_OF_A_REGISTER):
            return super().forward(x_BCHW)
        (down, right), form = self.stride, torch.channels_last
        return nn.functional.conv2d(x_BCHW[..., ::down, ::right].contiguous(memory_format=form), self.weight)


def map_channels(x_BCN: torch.Tensor, weight_KC1: torch.Tensor, bias_K: torch.Tensor | None) -> torch.Tensor:
    """Map the channels of x [B, C, N] or [B, C, H, W]. The result has the memory layout of x.

    weight: [K, C, 1] or [K, C, 1, 1]. In channels_last the map is one matrix product. On a GPU cuBLAS computes it best. On a CPU oneDNN's
    two-dimensional convolution does, twice as fast as a matrix product or a one-dimensional convolution.
    """
    if channels_are_last(x_BCN):
        if x_BCN.is_cuda:
            x_BNC = x_BCN.movedim(1, -1)
            y_MK = nn.functional.linear(
                x_BNC.flatten(0, -2), weight_KC1.flatten(1), bias_K
            )  # with two axes the bias is added within the product
            return y_MK.unflatten(0, x_BNC.shape[:-1]).movedim(-1, 1)
        if x_BCN.dim() == 3:
            return nn.functional.conv2d(x_BCN.unsqueeze(2), weight_KC1.unsqueeze(2), bias_K).squeeze(2)
    return nn.functional.conv1d(x_BCN, weight_KC1, bias_K) if x_BCN.dim() == 3 else nn.functional.conv2d(x_BCN, weight_KC1, bias_K)


def channels_are_last(x_BC: torch.Tensor) -> bool:
    """Tell whether the channels of a pixel lie side by side in memory, and not the pixels of a channel."""
    return x_BC.stride(1) == 1 and not x_BC.is_contiguous()
