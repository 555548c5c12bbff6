"""The contract between data and training: what a batch is."""

from __future__ import annotations

from dataclasses import dataclass

import torch

PADDING_LABEL = -1
"""Label of a slot that only fills up an evaluation batch: nothing is counted for it."""


@dataclass
class Batch:
    """One micro-batch, on the CPU until ``to`` is called.

    images_BCHW: float32 [B, 3, H, W], normalised with the configured mean and std.
    labels_B: int64 [B], class indices, or PADDING_LABEL.
    keys: the B samples' keys, each unique within its data set.
    """

    images_BCHW: torch.Tensor
    labels_B: torch.Tensor
    keys: list[str]

    def pin_memory(self) -> Batch:
        """Called by torch's DataLoader, so that the copy to a GPU can run beside the computation."""
        return Batch(self.images_BCHW.pin_memory(), self.labels_B.pin_memory(), self.keys)

    def to(self, device: torch.device) -> Batch:
        images_BCHW = self.images_BCHW.to(device, non_blocking=True)
        return Batch(images_BCHW, self.labels_B.to(device, non_blocking=True), self.keys)
