"""Started in two processes: the most memory that a rank's tensors take while a network is made and trained for two steps, by ZeRO stage.

    torchrun --nproc-per-node 2 -m tests.distributed.plan_worker STAGE

Prints, on rank 0, bytes measured and bytes planned for each reduction as JSON.
"""

from __future__ import annotations

import gc
import itertools
import json
import sys
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from tdformer.config import BackboneConfig, ModelConfig, RunConfig
from tdformer.config.training import ResolvedReduction
from tdformer.distributed.context import DistContext, init_distributed
from tdformer.estimate.plan import WORKSPACE_BYTES, plan
from tdformer.training.engine import Engine
from tdformer.training.model_with_loss import ModelWithLoss

REDUCTIONS: dict[int, tuple[ResolvedReduction, ...]] = {0: ("exact",), 1: ("exact",), 2: ("exact", "fast"), 3: ("exact",)}
"""What is measured at a stage. Only the sums of a global batch depend on the reduction, in the same way at all stages."""


def config_at(stage: int, reduction: ResolvedReduction) -> RunConfig:
    """Return the configuration of a network with 5 million parameters, so that their state counts beside the activations."""
    backbone = BackboneConfig(embed_dims=256, num_heads=4, depths=(1, 1, 4))
    return RunConfig.model_validate(
        {
            "name": "plan",
            "data": {"train": "unused", "val": "unused", "image_size": 32},
            "model": ModelConfig(backbone=backbone, num_classes=10, time_steps=2).model_dump(),
            "training": {
                "global_batch": 4,
                "micro_batch": 2,
                "precision": "fp32",
                "zero_stage": stage,
                "ema_decay": 0.9,
                "reduction": reduction,
            },
        }
    )


def train(config: RunConfig, reduction: ResolvedReduction, context: DistContext) -> Engine:
    engine = Engine(ModelWithLoss(config.model, label_smoothing=0.1), config, context, reduction)
    for _ in range(2):
        engine.micro_step(torch.randn(2, 3, 32, 32), torch.randint(0, 10, (2,)))
        engine.reduce()
        engine.optimizer_step(0.01)
    return engine


def measure(stage: int, reduction: ResolvedReduction, context: DistContext) -> dict[str, int]:
    config = config_at(stage, reduction)
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        engine = train(config, reduction, context)
    kineto: Any = profiler.profiler
    events = [event for event in kineto.kineto_results.events() if event.name() == "[memory]"]
    sizes = [size for _, size in sorted((event.start_ns(), event.nbytes()) for event in events)]
    del engine
    planned = plan(config, context.world_size).total_memory_bytes - WORKSPACE_BYTES
    return {"measured": max(itertools.accumulate(sizes)), "planned": planned}


def main() -> None:
    stage = int(sys.argv[1])
    with init_distributed() as context:
        memory = {reduction: measure(stage, reduction, context) for reduction in REDUCTIONS[stage]}
        if context.is_rank0:
            print(json.dumps(memory))


if __name__ == "__main__":
    main()
