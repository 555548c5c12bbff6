"""What is minimised: the weighted sum of the segments' losses."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from tdformer.config import ModelConfig, Precision, RecomputePolicy
from tdformer.models.tdformer import TDFormer

AUTOCAST: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""fp32 is without."""


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """Around a forward pass."""
    return torch.autocast(device.type, AUTOCAST[precision]) if precision in AUTOCAST else nullcontext()


class ModelWithLoss(nn.Module):
    """A TDFormer together with its loss, as the one module that DeepSpeed runs.

    loss = sum_n alpha_n * cross_entropy(O(n), y), alpha summing to 1 (paper section 4.3).
    """

    def __init__(
        self, config: ModelConfig, label_smoothing: float, recompute: RecomputePolicy = "none", precision: Precision = "fp32"
    ) -> None:
        super().__init__()
        self.model, self.precision = TDFormer(config, recompute), precision
        self.weights = config.segment_loss_weights()
        self.cross_entropy = nn.CrossEntropyLoss(label_smoothing=label_smoothing)

    def forward(self, images_BCHW: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """With labels (int64 [B], or after mixup float32 [B, classes]) the loss: a scalar, mean over the samples.

        Without, the logits [segments, B, classes].
        """
        with autocast(images_BCHW.device, self.precision):
            logits_NBK = self.model.forward_segments(images_BCHW)
        if labels is None:
            return logits_NBK
        losses = [self.cross_entropy(logits_BK.float(), labels) for logits_BK in logits_NBK]
        return sum(weight * loss for weight, loss in zip(self.weights, losses, strict=True))
