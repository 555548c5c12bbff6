"""The contract between data and training: what a batch is."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from data_pipelines.loading.normalisation import Normalisation

PADDING_LABEL = -1
"""Label of a slot that only fills up an evaluation batch: nothing is counted for it."""


@dataclass
class Batch:
    """One micro-batch, on the CPU until ``to`` is called.

    images_BCHW: uint8 [B, 3, H, W] as the loaders give it, or float32 and normalised; always the latter after ``to``.
        Event frames are float32 [T, B, 2, H, W], numbers of events.
    labels_B: int64 [B], class indices, or PADDING_LABEL.
    keys: the B samples' keys, each unique within its data set.
    skipped: one sentence for each sample that could not be read and was replaced by another.
    """

    images_BCHW: torch.Tensor
    labels_B: torch.Tensor
    keys: list[str]
    normalisation: Normalisation
    skipped: list[str] = field(default_factory=list)

    def pin_memory(self) -> Batch:
        """Called by torch's DataLoader, so that the copy to a GPU can run beside the computation."""
        return replace(self, images_BCHW=self.images_BCHW.pin_memory(), labels_B=self.labels_B.pin_memory())

    def to(self, device: torch.device) -> Batch:
        """On the device, with normalised images."""
        images_BCHW = self.images_BCHW.to(device, non_blocking=True)
        if images_BCHW.dtype == torch.uint8:
            images_BCHW = self.normalisation(images_BCHW)
        return replace(self, images_BCHW=images_BCHW.contiguous(), labels_B=self.labels_B.to(device, non_blocking=True))
