"""Defines a batch, the contract between data loading and training."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from data_pipelines.loading.normalisation import Normalisation

PADDING_LABEL = -1
"""The label of a slot that only fills an evaluation batch. Such slots are not counted."""


@dataclass
class Batch:
    """One micro-batch, on the CPU until ``to`` is called.

    images_BCHW: uint8 [B, 3, H, W] as the loaders give it, or float32 and normalised; always the latter after ``to``.
        Event frames are float32 [T, B, 2, H, W], numbers of events.
    labels_B: int64 [B], class indices, or PADDING_LABEL.
    keys: the keys of the B samples, each unique in its data set.
    skipped: one sentence for each unreadable sample that was replaced by another.
    """

    images_BCHW: torch.Tensor
    labels_B: torch.Tensor
    keys: list[str]
    normalisation: Normalisation
    skipped: list[str] = field(default_factory=list)

    def pin_memory(self) -> Batch:
        """Copy the tensors to pinned memory. torch's DataLoader calls this, so that the copy to a GPU runs beside the computation."""
        return replace(self, images_BCHW=self.images_BCHW.pin_memory(), labels_B=self.labels_B.pin_memory())

    def to(self, device: torch.device) -> Batch:
        """Copy the batch to a device, and normalise its images."""
        images_BCHW = self.images_BCHW.to(device, non_blocking=True)
        if images_BCHW.dtype == torch.uint8:
            images_BCHW = self.normalisation(images_BCHW)
        return replace(self, images_BCHW=images_BCHW.contiguous(), labels_B=self.labels_B.to(device, non_blocking=True))
