"""ModelWithLoss: the network together with what training minimises."""

from __future__ import annotations

import torch
from torch import nn

from tdformer.config import ModelConfig, Precision, RecomputePolicy
from tdformer.models.autocast import autocast
from tdformer.models.checkpointing.activation_checkpointing import check_exact
from tdformer.models.tdformer import TDFormer
from tdformer.training.loss import TemporalEfficientTraining


class ModelWithLoss(nn.Module):
    """Joins a TDFormer and its loss in one module, which DeepSpeed runs.

    loss = sum_n alpha_n * criterion(O(n), y), where alpha sums to 1 [paper section 4.3]. The criterion is the cross-entropy, unless another
    one is given.
    """

    def __init__(
        self,
        config: ModelConfig,
        label_smoothing: float,
        recompute: RecomputePolicy = "none",
        precision: Precision = "fp32",
        criterion: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.model, self.precision = TDFormer(config, recompute), precision
        self.criterion = criterion or nn.CrossEntropyLoss(label_smoothing=label_smoothing)
        self._was_exact: torch.Tensor | None = None

    def forward(self, images_BCHW: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Return the loss if labels are given, a scalar, the mean over the samples; else the logits [segments, B, classes].

        labels: int64 [B], or after mixup float32 [B, classes].
        """
        flags: list[torch.Tensor] = []
        self.model.kept_exactly = flags
        with autocast(images_BCHW.device, self.precision):
            wants_steps = labels is not None and isinstance(self.criterion, TemporalEfficientTraining)
            logits = (self.model.forward_steps if wants_steps else self.model.forward_segments)(images_BCHW)
        if labels is None:
            return logits
        losses = [self.criterion(of_segment.float(), labels) for of_segment in logits]
        loss = sum(weight * loss for weight, loss in zip(self.model.config.segment_loss_weights(), losses, strict=True))
        return self._nan_unless_exact(loss, flags) if flags else loss

    def check_exact(self) -> None:
        """Raise RuntimeError if recompute could not keep an input exactly since the last call. The loss was NaN then. The host waits."""
        flag, self._was_exact = self._was_exact, None
        if flag is not None:
            check_exact(flag)

    def _nan_unless_exact(self, loss: torch.Tensor, flags: list[torch.Tensor]) -> torch.Tensor:
        is_exact = torch.stack(flags).all()
        self._was_exact = is_exact if self._was_exact is None else self._was_exact & is_exact
        return torch.where(is_exact, loss, torch.nan)
