"""TrainState and Snapshot: how far a run has come, and the tensors of that moment."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from tdformer.checkpoint.loss_scale import LossScale
from tdformer.config.training import ResolvedReduction

FORMAT_VERSION = 3
"""Version 3 has the parameter names of tdformer.models.layers."""


@dataclass(frozen=True)
class TrainState:
    """Says how far a run has come. Epoch and place in it follow from `step`, because all steps are equal."""

    step: int = 0
    """Global batches that were passed: those trained on, and those left out because of non-finite numbers."""
    updates: int = 0
    """Optimizer steps behind the weights. Global batches that were left out or undone do not count."""
    evaluated_epochs: int = 0
    """Epochs whose evaluation is done."""
    best_top1: float = -1.0
    """Best validation top-1 in percent. It is that of the averaged weights if training.ema_decay is on."""
    world_size: int = 1
    """Ranks that saved this."""
    samples: int = 0
    """Samples in the training set."""
    classes: list[str] = field(default_factory=list)
    """Names of the classes, in the order of their labels."""
    data: str = ""
    """Digest of the training set's samples in their stored order. `step` counts batches of that order."""
    bad_samples: int = 0
    """Samples that could not be read and were replaced, over all ranks since the run began."""
    non_finite: int = 0
    """Global batches that training passed over because their loss or gradient was not finite."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Metrics of the last evaluation."""
    loss_scale: LossScale | None = None
    """Loss scale for the next global batch. Only fp16 has one."""
    reduction: ResolvedReduction = "exact"
    """How gradients are summed over the ranks: what training.reduction was, or what auto chose at the start of the run."""
    version: int = FORMAT_VERSION


@dataclass(frozen=True)
class Snapshot:
    """Holds everything that a resume needs. Tensors are full, on the CPU, and named as in the TDFormer."""

    train_state: TrainState
    model: dict[str, torch.Tensor]
    """Parameters and BatchNorm statistics."""
    optimizer: dict[str, torch.Tensor]
    """The optimizer's moments, fp32, as Engine.optimizer_state gives them."""
    average: dict[str, torch.Tensor] | None = None
    """Moving averages of `model`, if training.ema_decay is on."""
