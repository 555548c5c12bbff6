"""The top-down path: a processing module turns a segment's result into spikes, and control modules let them steer the next segment.

Shapes: T time steps of a segment, B samples, C channels, N tokens.
"""

from __future__ import annotations

import torch
from torch import nn

from tdformer.models.channel_maps import ChannelConv1d
from tdformer.models.neuron_state import NeuronState
from tdformer.models.neurons import LIF, ParametricLIF

CONTROL_TARGETS = {"cm1": "key", "cm2": "value", "cm3": "input"}
"""The part of the attention that the top-down spikes enter [paper figure 3]."""


class ControlModule(nn.Module):
    """Holds the top-down half of a map in the attention.

    For CM1 the map is K = SN(BN(W_bu S_bu + W_td S_td)) [paper section 4.1], where SN are spiking neurons. For CM2 it is V.

    The paper concatenates S_bu and S_td and widens K's weight from CxC to Cx2C. The sum of two maps is the
    same function. With the bottom-up half under its own name, a backbone's checkpoint loads as it is.
    For CM3 the attention's input is S_bu + W_td S_td: the paper says that S_td enters the input, and that all
    variants have the same size, which leaves no weight for S_bu [inferred].
    The top-down half starts as normal noise of `init_std` [our choice]. With 0 the network starts as its backbone.
    """

    def __init__(self, channels: int, variant: str, init_std: float) -> None:
        super().__init__()
        self.target = CONTROL_TARGETS[variant]
        self.td_conv = ChannelConv1d(channels, channels, bias=False)
        nn.init.normal_(self.td_conv.weight, std=init_std) if init_std else nn.init.zeros_(self.td_conv.weight)

    def forward(self, topdown_TBCHW: torch.Tensor) -> torch.Tensor:
        """Return the term [T, B, C, N] that top-down spikes add to the target, before its BatchNorm if it has one."""
        topdown_TBCN = topdown_TBCHW.flatten(3)
        return self.td_conv(topdown_TBCN.flatten(0, 1)).unflatten(0, topdown_TBCN.shape[:2])


class ProcessingModule(nn.Module):
    """Computes S_td = SN(X · M), M = clamp(mixed X, b, a): a spatial map M scales X [paper section 4.2, appendix B.2].

    The mixer takes C channels to one map and is normalised to length 1 [paper]. Its direction starts as Gaussian
    noise, so that the map has mean 0 as in the paper's proposition B.4, and the clamp at b = 0 lets about half of
    the tokens pass [our choice]. The figure of the variants is not fully legible, so this assignment is inferred:
    v1 1x1 mixer and LIF, v2 3x3 and LIF, v3 3x3 and parametric LIF, v4 1x1 and parametric LIF [inferred].
    """

    def __init__(self, channels: int, variant: str, clamp: tuple[float, float]) -> None:
        super().__init__()
        self.lower, self.upper = clamp
        width = 3 if variant in ("v2", "v3") else 1
        self.weight = nn.Parameter(torch.randn(1, channels, width, width))
        self.lif = ParametricLIF() if variant in ("v3", "v4") else LIF()

    def forward(self, x_TBCHW: torch.Tensor, neuron_state: NeuronState) -> torch.Tensor:
        """Return the top-down spikes of a segment's features, in their shape."""
        return self.lif(x_TBCHW * self.spatial_map(x_TBCHW).clamp(self.lower, self.upper), neuron_state)

    def spatial_map(self, x_TBCHW: torch.Tensor) -> torch.Tensor:
        """Return the map before the clamp, [T, B, 1, H, W]."""
        mixer = nn.functional.normalize(self.weight.flatten(), dim=0).view_as(self.weight)
        return nn.functional.conv2d(x_TBCHW.flatten(0, 1), mixer, padding="same").unflatten(0, x_TBCHW.shape[:2])
