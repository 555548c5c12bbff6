"""Started in several processes: the most memory that a rank's tensors take while a network is trained, and what is sent in a step.

    torchrun --nproc-per-node 2 -m tests.distributed.plan_worker

Prints, on rank 0, bytes measured and bytes planned as JSON, by reduction and ZeRO stage.
"""

from __future__ import annotations

import gc
import inspect
import itertools
import json
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, get_args

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile

from tdformer.config import BackboneConfig, ModelConfig, RunConfig
from tdformer.config.training import ResolvedReduction
from tdformer.distributed.context import DistContext, init_distributed
from tdformer.estimate.plan import WORKSPACE_BYTES, NetworkSize, network_size, plan
from tdformer.estimate.traffic import Machines
from tdformer.training.engine import Engine
from tdformer.training.model_with_loss import ModelWithLoss

FEW, MANY = 2, 5
"""Micro-batches of a rank in one step. Of five, the exact reduction adds up a rank's own at ZeRO 0 and 1."""
NOT_MEASURED = ("fast", 3)
"""What DeepSpeed frees late there, and differently from run to run: up to 34 % more than planned on four ranks, and 20 % on two."""

SECONDS_TO_LET_GO = 0.01
"""A thread of gloo holds what it has sent for a moment longer. On slow cores that moment would decide about the memory measured."""

COLLECTIVES = {
    "all_reduce": ("tensor", 2),
    "reduce": ("tensor", 1),
    "all_gather_into_tensor": ("output_tensor", 1),
    "broadcast": ("tensor", 1),
    "reduce_scatter_tensor": ("input", 1),
    "all_to_all_single": ("input", 1),
}
"""The argument that holds the whole tensor, and how often a ring of GPUs passes it on."""
sent_bytes: Counter[str] = Counter()
"""It holds, by collective, the bytes that this rank has sent since it was cleared, before what stays on the rank is taken off."""


def count_collectives() -> None:
    """Count what torch.distributed sends from now on. Other collectives than these would be missed; at these steps there are none."""
    for name, (argument, times) in COLLECTIVES.items():
        setattr(dist, name, _counted(name, getattr(dist, name), argument, times))


def _counted(name: str, collective: Callable[..., Any], argument: str, times: int) -> Callable[..., Any]:
    signature = inspect.signature(collective)

    def call(*arguments: Any, **named: Any) -> Any:
        sent_bytes[name] += times * signature.bind(*arguments, **named).arguments[argument].nbytes
        result = collective(*arguments, **named)
        time.sleep(SECONDS_TO_LET_GO)
        return result

    return call


def config_at(stage: int, reduction: ResolvedReduction, ranks: int, communication_dtype: str) -> RunConfig:
    """Return the configuration of a network with 5 million parameters, so that their state counts beside the activations."""
    backbone = BackboneConfig(embed_dims=384, num_heads=6, depths=(1, 1, 1))
    return RunConfig.model_validate(
        {
            "name": "plan",
            "data": {"train": "unused", "val": "unused", "image_size": 32},
            "model": ModelConfig(backbone=backbone, num_classes=10, time_steps=2).model_dump(),
            "training": {
                "global_batch": 2 * (MANY if reduction == "exact" and stage < 2 else FEW) * ranks,
                "micro_batch": 2,
                "precision": "fp32",
                "zero_stage": stage,
                "ema_decay": 0.9,
                "reduction": reduction,
                "communication_dtype": communication_dtype,
            },
        }
    )


def train(config: RunConfig, reduction: ResolvedReduction, context: DistContext) -> Engine:
    engine = Engine(ModelWithLoss(config.model, label_smoothing=0.1), config, context, reduction)
    for _ in range(2):
        sent_bytes.clear()
        for _ in range(config.training.accumulation(context.world_size)):
            engine.micro_step(torch.randn(2, 3, 32, 32), torch.randint(0, 10, (2,)))
        engine.reduce()
        engine.optimizer_step(0.01)
    return engine


def measure(
    stage: int, reduction: ResolvedReduction, context: DistContext, size: NetworkSize, communication_dtype: str = "fp32"
) -> dict[str, Any]:
    """size: of the network, which is the same in all cases."""
    config = config_at(stage, reduction, context.world_size, communication_dtype)
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        engine = train(config, reduction, context)
    kineto: Any = profiler.profiler
    events = [event for event in kineto.kineto_results.events() if event.name() == "[memory]"]
    sizes = [size for _, size in sorted((event.start_ns(), event.nbytes()) for event in events)]
    del engine
    passed_on = (context.world_size - 1) / context.world_size
    sent = {name: passed_on * number for name, number in sent_bytes.items()}
    planned = plan(config, Machines(context.world_size), size=size)
    total = planned.total_memory_bytes - WORKSPACE_BYTES
    state = sum(planned.memory_bytes[part] for part in ("gradients", "global_batch_sums", "optimizer"))
    memory = {"measured": max(itertools.accumulate(sizes)), "planned": total, "planned_state": state}
    return {**memory, "sent": sent, "planned_sent": planned.communication_bytes}


def main() -> None:
    count_collectives()
    with init_distributed() as context:
        cases = [case for case in itertools.product(get_args(ResolvedReduction), range(4)) if case != NOT_MEASURED]
        size = network_size(config_at(0, "exact", context.world_size, "fp32"))
        memory = {f"{reduction} {stage}": measure(stage, reduction, context, size) for reduction, stage in cases}
        if context.world_size == 2:
            memory |= {f"fast {stage} bf16": measure(stage, "fast", context, size, "bf16") for stage in (0, 2, 3)}
        if context.is_rank0:
            print(json.dumps(memory))


if __name__ == "__main__":
    main()
