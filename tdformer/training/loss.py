"""Makes the loss of one segment's logits."""

from __future__ import annotations

import torch
from torch import nn

from tdformer.config.training import Loss


class BinaryCrossEntropy(nn.Module):
    """The binary cross-entropy of each class against all others, the mean over samples and classes.

    threshold: targets above it become 1, and all others 0, so that each image mixed in is an answer of its own. None: targets stay.
    """

    def __init__(self, label_smoothing: float, threshold: float | None) -> None:
        super().__init__()
        self.label_smoothing, self.threshold = label_smoothing, threshold

    def forward(self, logits_BK: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss, a scalar. labels: int64 [B], or class probabilities [B, K]."""
        classes = logits_BK.shape[1]
        target_BK = (labels if labels.dim() > 1 else nn.functional.one_hot(labels, classes)).to(logits_BK.dtype)
        target_BK = target_BK * (1 - self.label_smoothing) + self.label_smoothing / classes
        if self.threshold is not None:
            target_BK = (target_BK > self.threshold).to(logits_BK.dtype)
        return nn.functional.binary_cross_entropy_with_logits(logits_BK, target_BK)


def make_loss(loss: Loss, label_smoothing: float, bce_threshold: float | None = None) -> nn.Module:
    """Return the loss of logits [B, K] and labels (int64 [B], or probabilities [B, K]): a scalar, the mean over the samples."""
    if loss == "bce":
        return BinaryCrossEntropy(label_smoothing, bce_threshold)
    return nn.CrossEntropyLoss(label_smoothing=label_smoothing)
