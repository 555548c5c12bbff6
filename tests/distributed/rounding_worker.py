"""Started in one or several processes: trains a small network with training.reduction fast, and prints its losses as JSON.

    torchrun --nproc-per-node 2 -m tests.distributed.rounding_worker

One process also trains networks whose first weights are rounded otherwise, and two that differ by more than rounding.
"""

from __future__ import annotations

import json

import torch

from tdformer.config import FeedbackConfig, ModelConfig, RunConfig
from tdformer.distributed.context import DistContext, init_distributed
from tdformer.training.engine import Engine
from tdformer.training.model_with_loss import ModelWithLoss
from tests.unit.networks import BACKBONES, lively

STEPS, MICRO_BATCHES, ROUNDINGS = 8, 4, 4
"""There are four micro-batches, because a sum of two is the same in any order."""
RATE = 0.01


def losses(context: DistContext, rounding: int | None = None, rate: float = RATE, first_image: int = 0) -> list[float]:
    """Return the loss of each step.

    rounding: the seed by which first weights are moved up or down by one unit in the last place. first_image: where the data begin.
    """
    network = ModelConfig(backbone=BACKBONES["qkformer-imagenet"], num_classes=5, feedback=FeedbackConfig(init_std=0.3))
    training = {"global_batch": 2 * MICRO_BATCHES, "micro_batch": 2, "precision": "fp32", "zero_stage": 1, "reduction": "fast"}
    data = {"train": "unused", "val": "unused", "image_size": 32}
    config = RunConfig.model_validate({"name": "rounding", "data": data, "model": network.model_dump(), "training": training})
    torch.manual_seed(0)
    model_with_loss = lively(ModelWithLoss(network, label_smoothing=0.1))
    if rounding is not None:
        generator = torch.Generator().manual_seed(rounding)
        for parameter in model_with_loss.parameters():
            towards = torch.where(torch.rand(parameter.shape, generator=generator) < 0.5, -torch.inf, torch.inf)
            parameter.data = torch.nextafter(parameter.data, towards)
    engine, found = Engine(model_with_loss, config, context, "fast"), []
    for step in range(STEPS):
        for number in range(context.rank, MICRO_BATCHES, context.world_size):
            generator = torch.Generator().manual_seed(first_image + 100 * step + number)
            images_BCHW, labels_B = torch.randn(2, 3, 32, 32, generator=generator), torch.randint(0, 5, (2,), generator=generator)
            engine.micro_step(images_BCHW, labels_B)
        engine.reduce()
        found.append(engine.optimizer_step(rate).loss)
    return found


def main() -> None:
    with init_distributed() as context:
        found = {"plain": losses(context)}
        if context.world_size == 1:
            found |= {f"rounded {seed}": losses(context, rounding=seed) for seed in range(ROUNDINGS)}
            found |= {"another rate": losses(context, rate=1.5 * RATE), "other data": losses(context, first_image=1)}
        if context.is_rank0:
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
