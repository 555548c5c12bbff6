"""Started in two processes: trains small networks under recompute policies at one ZeRO stage, and compares.

    torchrun --nproc-per-node 2 -m tests.distributed.recompute_worker STAGE

Two optimizer steps of two micro-batches each, with drop path, clipping and feedback. Prints a line for each network and
policy that is the same, in every bit, as with policy none: losses of this rank, parameters, optimizer state and statistics.
"""

from __future__ import annotations

import sys

import torch

from tdformer.config import FeedbackConfig, ModelConfig, RecomputePolicy, RunConfig
from tdformer.distributed.context import DistContext, init_distributed
from tdformer.training.engine import Engine
from tdformer.training.model_with_loss import ModelWithLoss
from tests.unit.networks import BACKBONES, lively

NETWORKS = ("qkformer-imagenet", "spikformer-cifar", "sdt-imagenet")
POLICIES: tuple[RecomputePolicy, ...] = ("segment", "block", "block_segment")


def pairs(stage: int) -> list[tuple[str, RecomputePolicy]]:
    """Return what is tried at a stage: each network once and each policy once. Over the stages, each network meets each policy."""
    return [(network, POLICIES[(number + stage) % len(POLICIES)]) for number, network in enumerate(NETWORKS)]


def trained(backbone: str, policy: RecomputePolicy, stage: int, context: DistContext) -> dict[str, torch.Tensor]:
    network = ModelConfig(
        backbone=BACKBONES[backbone].model_copy(update={"drop_path": 0.3}), num_classes=5, feedback=FeedbackConfig(init_std=0.3)
    )
    config = RunConfig.model_validate(
        {
            "name": "recompute",
            "data": {"train": "unused", "val": "unused", "image_size": 32},
            "model": network.model_dump(),
            "training": {"global_batch": 8, "micro_batch": 2, "precision": "fp32", "clip_grad": 1.0, "zero_stage": stage},
        }
    )
    torch.manual_seed(0)
    model_with_loss = ModelWithLoss(network, label_smoothing=0.1, recompute=policy)
    lively(model_with_loss)
    engine = Engine(model_with_loss, config, context)
    losses = []
    for micro_batch in range(4):
        torch.manual_seed(100 * micro_batch + context.rank)
        losses.append(engine.micro_step(torch.randn(2, 3, 32, 32), torch.randint(0, 5, (2,))))
        if micro_batch % 2:
            engine.reduce()
            engine.optimizer_step(0.01)
    return {"losses": torch.stack(losses), **engine.model_state(), **engine.optimizer_state()}


def main() -> None:
    stage = int(sys.argv[1])
    with init_distributed() as context:
        for backbone, policy in pairs(stage):
            reference, results = (trained(backbone, each, stage, context) for each in ("none", policy))
            assert results.keys() == reference.keys()
            different = [name for name, tensor in results.items() if not torch.equal(tensor, reference[name])]
            print(f"rank {context.rank} {backbone} {policy}: {different or 'same'}\n", end="", flush=True)


if __name__ == "__main__":
    main()
