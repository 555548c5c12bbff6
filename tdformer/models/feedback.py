"""The top-down path: how a segment's result becomes spikes (processing module) and steers the next one (control module).

Shapes: T time steps of a segment, B samples, C channels, N tokens.
"""

from __future__ import annotations

import torch
from torch import nn

from tdformer.models.neurons import LIF, Membranes


class ControlModule(nn.Module):
    """CM1: the top-down half of the keys' map, K = SN(BN(W_bu S_bu + W_td S_td)) (paper section 4.1).

    The paper concatenates S_bu and S_td and widens K's weight from CxC to Cx2C. The sum of two maps is the
    same function; with the bottom-up half under its own name, a backbone's checkpoint loads as it is.
    The top-down half starts as normal noise of `init_std` (our choice; 0 starts at the backbone's function).
    """

    def __init__(self, channels: int, init_std: float) -> None:
        super().__init__()
        self.td_conv = nn.Conv1d(channels, channels, 1, bias=False)
        nn.init.normal_(self.td_conv.weight, std=init_std) if init_std else nn.init.zeros_(self.td_conv.weight)

    def forward(self, topdown_TBCN: torch.Tensor) -> torch.Tensor:
        """Top-down spikes -> what they add to the keys before BatchNorm, both [T, B, C, N]."""
        return self.td_conv(topdown_TBCN.flatten(0, 1)).unflatten(0, topdown_TBCN.shape[:2])


class ProcessingModule(nn.Module):
    """v1: S_td = SN(X · M), M = clamp(sum_c w_c X_c, b, a): a spatial map scales X (paper section 4.2, appendix B.2).

    w is normalised to length 1 [paper]. Its direction starts as Gaussian noise, so that the map has mean 0 as
    in the paper's proposition B.4, and the clamp at b = 0 lets about half of the tokens pass [our choice].
    That v1 is the linear mixer with a LIF neuron is our reading of a figure that survives in fragments.
    """

    def __init__(self, channels: int, clamp: tuple[float, float]) -> None:
        super().__init__()
        self.lower, self.upper = clamp
        self.weight = nn.Parameter(torch.randn(channels))
        self.lif = LIF()

    def forward(self, x_TBCHW: torch.Tensor, membranes: Membranes) -> torch.Tensor:
        """A segment's features -> top-down spikes, same shape."""
        w_C11 = nn.functional.normalize(self.weight, dim=0).view(-1, 1, 1)
        map_TB1HW = (x_TBCHW * w_C11).sum(2, keepdim=True).clamp(self.lower, self.upper)
        return self.lif(x_TBCHW * map_TB1HW, membranes)
