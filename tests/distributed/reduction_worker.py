"""Started in several processes: trains a small network with training.reduction fast at every ZeRO stage, and prints what came out.

    torchrun --nproc-per-node 2 -m tests.distributed.reduction_worker

The last line of rank 0 is JSON: by case, what `Case` says.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import torch

from tdformer.config import FeedbackConfig, ModelConfig, RunConfig
from tdformer.config.training import ResolvedReduction
from tdformer.distributed.context import DistContext, init_distributed
from tdformer.training.engine import Engine
from tdformer.training.model_with_loss import ModelWithLoss
from tests.unit.networks import BACKBONES, lively

STEPS, BAD_STEP = 3, 1
CASES: dict[str, dict[str, Any]] = {
    "stage 0": {"zero_stage": 0},
    "stage 0, fp16": {"zero_stage": 0, "loss_scale": 2.0**12},
    "stage 1": {"zero_stage": 1},
    "stage 1, fp16": {"zero_stage": 1, "loss_scale": 2.0**12},
    "stage 1, offload": {"zero_stage": 1, "offload": "optimizer"},
    "stage 2": {"zero_stage": 2},
    "stage 3": {"zero_stage": 3},
    "stage 3, fp16": {"zero_stage": 3, "loss_scale": 2.0**12},
}


@dataclass
class Case:
    """What came out of one case, compared with the exact reduction on the same data."""

    loss_difference: float
    """Largest relative difference of a loss."""
    norm_difference: float
    """Largest relative difference of a gradient norm."""
    moment_difference: float
    """Largest difference of a first moment after all steps, relative to the largest first moment. Both are means of gradients."""
    is_same_again: bool
    """Whether a second run gave the same bits."""
    drops_bad_steps: bool
    """Whether a step with a loss that is not finite on one rank was dropped, and changed no bit of the state."""


def train(
    case: dict[str, Any], reduction: ResolvedReduction, context: DistContext
) -> tuple[list[float], list[float], dict[str, torch.Tensor], bool]:
    """Return losses and norms of the steps, the state after them, and whether the bad step changed nothing."""
    case = dict(case)
    scale = case.pop("loss_scale", 1.0)
    network = ModelConfig(backbone=BACKBONES["qkformer-imagenet"], num_classes=5, feedback=FeedbackConfig(init_std=0.3))
    config = RunConfig.model_validate(
        {
            "name": "reduction",
            "data": {"train": "unused", "val": "unused", "image_size": 32},
            "model": network.model_dump(),
            "training": {
                "global_batch": 4 * context.world_size,
                "micro_batch": 2,
                "precision": "fp32",
                "clip_grad": 0.5,
                "ema_decay": 0.9,
                **case,
            },
        }
    )
    torch.manual_seed(0)
    model_with_loss = ModelWithLoss(network, label_smoothing=0.1)
    lively(model_with_loss)
    engine = Engine(model_with_loss, config, context, reduction)
    losses, norms, unchanged = [], [], False
    for step in range(STEPS + 1):
        is_bad, before = step == BAD_STEP, state_of(engine) if step == BAD_STEP else {}
        for micro_batch in range(2):
            torch.manual_seed(100 * step + 10 * micro_batch + context.rank)
            images_BCHW = torch.randn(2, 3, 32, 32)
            if is_bad and micro_batch == 0 and context.rank == context.world_size - 1:
                images_BCHW[0, 0, 0, 0] = torch.inf
            engine.micro_step(images_BCHW, torch.randint(0, 5, (2,)), scale)
        engine.reduce(scale)
        result = engine.optimizer_step(0.01)
        if is_bad:
            after = state_of(engine)
            unchanged = not result.is_taken and all(torch.equal(tensor, after[name]) for name, tensor in before.items())
        else:
            assert result.is_taken
            losses.append(result.loss)
            norms.append(float(result.norm))
    return losses, norms, state_of(engine), unchanged


def state_of(engine: Engine) -> dict[str, torch.Tensor]:
    average = {f"average.{name}": tensor for name, tensor in engine.average_state().items()}
    return engine.model_state() | engine.optimizer_state() | average


def compared(case: dict[str, Any], context: DistContext) -> Case:
    losses, norms, state, unchanged = train(case, "fast", context)
    again = train(case, "fast", context)
    exact_losses, exact_norms, exact, exact_unchanged = train(case, "exact", context)
    moments = [name for name in state if name.startswith("exp_avg.")]
    return Case(
        largest(losses, exact_losses),
        largest(norms, exact_norms),
        max((float((state[name] - exact[name]).abs().max() / exact[name].abs().max()) for name in moments), default=0.0),
        again[:2] == (losses, norms) and all(torch.equal(tensor, again[2][name]) for name, tensor in state.items()),
        unchanged and exact_unchanged,
    )


def largest(values: list[float], references: list[float]) -> float:
    return max(abs(value / reference - 1) for value, reference in zip(values, references, strict=True))


def main() -> None:
    with init_distributed() as context:
        found = {name: asdict(compared(case, context)) for name, case in CASES.items()}
        if context.is_rank0:
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
