"""Parameter groups and the learning rate."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from tdformer.config import OptimizerConfig


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Weights of two or more dimensions are decayed; biases, BatchNorm and other vectors are not. Frozen weights are left out."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.dim() > 1]
    vectors = [parameter for parameter in trained if parameter.dim() <= 1]
    return [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameter_groups(model, config), lr=0.0, betas=config.betas, eps=config.eps)


def learning_rate_at(step: int, *, peak: float, floor: float, warmup_steps: float, total_steps: int) -> float:
    """The learning rate of optimizer step `step`, counted from 0: linear warm-up, then a cosine from peak to floor.

    A pure function of the step: there is no schedule state to save.
    """
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    return floor + (peak - floor) * (1 + math.cos(math.pi * progress)) / 2
