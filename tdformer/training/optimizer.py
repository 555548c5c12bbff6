"""Makes the optimizer and its parameter groups."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch

from tdformer.config import BackboneConfig, OptimizerConfig
from tdformer.models.tdformer import TDFormer
from tdformer.training.lamb import Lamb

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Moments that AdamW and LAMB keep for each parameter, besides a count of their steps."""


LAYER_OF_STAGE = re.compile(r"backbone\.stages\.(?P<stage>\d+)\.(patch_embed|blocks\.(?P<block>\d+))\.")


def layer_of(name: str, backbone: BackboneConfig) -> int:
    """Return the layer of a parameter of a TDFormer, counted from 0 at the image.

    A stage before the last one is one layer, together with its patch embedding. In the last stage the patch embedding and each block are
    layers of their own. The head comes last. Top-down modules count as the head, because they start fresh at any depth [our choice: layer
    decay comes from BEiT and MAE, whose networks have no stages].
    """
    last_stage = len(backbone.depths) - 1
    part = LAYER_OF_STAGE.match(name)
    if part is None or ".control." in name:
        return last_stage + 1 + backbone.depths[-1]
    stage, block = int(part["stage"]), part["block"]
    return stage + 1 + int(block) if stage == last_stage and block else stage


def parameter_groups(model: TDFormer, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Return the parameter groups: for each layer one with weight decay and one without. Without layer decay all layers are one.

    lr_scale of a group is its factor on the learning rate. Weights of two or more dimensions are decayed. Biases, BatchNorm and other
    vectors are not, as in the public code. Frozen weights are left out.
    """
    head = layer_of("backbone.head.weight", model.config.backbone)
    groups: dict[tuple[int, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            layer = layer_of(name, model.config.backbone) if config.layer_decay else head
            groups.setdefault((layer, parameter.dim() > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": config.weight_decay if is_decayed else 0.0,
            "lr_scale": (config.layer_decay or 1.0) ** (head - layer),
        }
        for (layer, is_decayed), parameters in sorted(groups.items(), key=lambda item: (item[0][0], not item[0][1]))
    ]


def make_optimizer(model: TDFormer, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Make torch's AdamW, or LAMB."""
    groups = parameter_groups(model, config)
    if config.name == "lamb":
        return Lamb(groups, config.betas, config.eps)
    on_gpu = next(model.parameters()).is_cuda
    return torch.optim.AdamW(groups, lr=0.0, betas=config.betas, eps=config.eps, fused=on_gpu)


def set_steps(optimizer: torch.optim.Optimizer, parameters: Iterable[torch.Tensor], steps: int) -> None:
    """Tell an optimizer how many steps it has taken. It counts them for each parameter."""
    for parameter in parameters:  # a fused AdamW reads the count where the parameter is
        device = parameter.device if optimizer.defaults.get("fused") else None
        optimizer.state[parameter]["step"] = torch.tensor(float(steps), device=device)
