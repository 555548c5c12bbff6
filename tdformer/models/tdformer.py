"""TDFormer: a backbone run segment by segment, each segment's result controlling the attention of the next.

S_bu(n) = bottom-up stages at the steps of segment n
H(n)    = transformer blocks (S_bu(n), S_td(n-1))
S_td(n) = processing module (H(n))
O(n)    = head (H(n))                                         (paper section 4, figure 2)
"""

from __future__ import annotations

import torch
from torch import nn

from tdformer.config import ModelConfig
from tdformer.models.feedback import ControlModule, ProcessingModule
from tdformer.models.neurons import Membranes
from tdformer.models.qkformer import QKFormer


class TDFormer(nn.Module):
    """The network of one run. Without feedback it is the backbone, in segments.

    Segments share all weights and are linked by the membrane potentials (if carried) and the top-down spikes.
    BatchNorm sees the time steps of one segment at a time.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.time_steps, self.segments = config.time_steps, config.segments
        self.carry_membrane = config.carry_membrane
        self.backbone = QKFormer(config.backbone, config.num_classes, config.time_steps)
        self.processing: ProcessingModule | None = None
        # The top-down weights come last, so that the backbone's initial weights do not depend on them.
        if config.feedback is not None:
            blocks = range(len(self.backbone.stage3)) if config.feedback.blocks == "all" else config.feedback.blocks
            for index in blocks:
                self.backbone.controlled(index).control = ControlModule(self.backbone.num_features, config.feedback.init_std)
            self.processing = ProcessingModule(self.backbone.num_features, config.feedback.clamp)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.momentum = config.batch_norm_momentum

    def forward_features(self, x_BCHW: torch.Tensor) -> list[torch.Tensor]:
        """Images [B, 3, H, W] -> H(n) of every segment, each [T/segments, B, D, H/16, W/16]."""
        if x_BCHW.shape[2] % self.backbone.stride or x_BCHW.shape[3] % self.backbone.stride:
            raise ValueError(f"image height and width must be multiples of {self.backbone.stride}, got {tuple(x_BCHW.shape[2:])}")
        x_TBCHW = x_BCHW.expand(self.time_steps // self.segments, *x_BCHW.shape)
        membranes, topdown_TBCHW, features = Membranes(), None, []
        for segment in range(self.segments):
            s_TBCHW = self.backbone.bottom_up(x_TBCHW, membranes)
            features.append(self.backbone.transform(s_TBCHW, topdown_TBCHW, membranes))
            if self.processing is not None and segment < self.segments - 1:
                topdown_TBCHW = self.processing(features[-1], membranes)
            membranes = Membranes(membranes.after if self.carry_membrane else None)
        return features

    def forward_head(self, h_TBCHW: torch.Tensor) -> torch.Tensor:
        """One segment's features -> logits [B, classes]."""
        return self.backbone.forward_head(h_TBCHW)

    def forward_segments(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Images [B, 3, H, W] -> logits of every segment, [segments, B, classes]; training uses all of them."""
        return torch.stack([self.forward_head(h_TBCHW) for h_TBCHW in self.forward_features(x_BCHW)])

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Images [B, 3, H, W] -> logits of the last segment [B, classes], which alone is evaluated [paper]."""
        return self.forward_segments(x_BCHW)[-1]
