"""Makes the loss of one segment's logits."""

from __future__ import annotations

import torch
from torch import nn

from tdformer.config.training import TrainingConfig


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


class TemporalEfficientTraining(nn.Module):
    """The cross-entropy of each time step's logits instead of their mean's [Deng et al., arXiv 2202.11946, equation 9].

    share: weight of a second term, the squared distance of each logit from 1, the neurons' threshold. It keeps single steps from outliers.
    """

    def __init__(self, label_smoothing: float, share: float) -> None:
        super().__init__()
        self.cross_entropy, self.share = nn.CrossEntropyLoss(label_smoothing=label_smoothing), share

    def forward(self, logits_TBK: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss, a scalar, the mean over time steps and samples. labels: int64 [B], or class probabilities [B, K]."""
        steps = len(logits_TBK)
        of_labels = self.cross_entropy(logits_TBK.flatten(0, 1), labels.repeat(steps, *[1] * (labels.dim() - 1)))
        distance = (logits_TBK - 1).square().mean()
        return (1 - self.share) * of_labels + self.share * distance


def make_loss(training: TrainingConfig) -> nn.Module:
    """Return the loss of logits [B, K] and labels (int64 [B], or probabilities [B, K]): a scalar, the mean over the samples.

    That of loss: tet takes the logits of all time steps, [T, B, K].
    """
    match training.loss:
        case "bce":
            return BinaryCrossEntropy(training.label_smoothing, training.bce_threshold)
        case "tet":
            return TemporalEfficientTraining(training.label_smoothing, training.tet_share or 0.0)
        case "cross_entropy":
            return nn.CrossEntropyLoss(label_smoothing=training.label_smoothing)
