"""Started in several processes: trains a small network with training.reduction fast at every ZeRO stage, and prints what came out.

    torchrun --nproc-per-node 2 -m tests.distributed.reduction_worker

The last line of rank 0 is JSON: by case, what `Case` says, and what auto means, by the number of hosts.
"""

from __future__ import annotations

import json
import socket
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist

from tdformer.config import FeedbackConfig, ModelConfig, RunConfig
from tdformer.config.training import ResolvedReduction
from tdformer.distributed.context import DistContext, init_distributed
from tdformer.training import engine as engine_module
from tdformer.training.engine import Engine
from tdformer.training.model_with_loss import ModelWithLoss
from tdformer.training.parameter_gather import MOST_RANKS
from tdformer.training.reduction.reduction import resolved
from tests.unit.networks import BACKBONES, lively

STEPS, BAD_STEP = 2, 1

FP16 = {"loss_scale": 2.0**12}
BF16 = {"communication_dtype": "bf16"}
CASES: dict[str, dict[str, Any]] = {
    "stage 0": {"zero_stage": 0, **FP16},
    "stage 1": {"zero_stage": 1},
    "stage 1, offload": {"zero_stage": 1, "offload": "optimizer", **FP16},
    "stage 2": {"zero_stage": 2},
    "stage 3": {"zero_stage": 3, **FP16},
    "stage 0, bf16": {"zero_stage": 0, **BF16},
    "stage 2, bf16": {"zero_stage": 2, **BF16},
    "stage 3, bf16": {"zero_stage": 3, **BF16},
}
GATHERING = [CASES[name] for name in ("stage 1", "stage 1, offload", "stage 2")]
"""Cases that are also tried with DeepSpeed's own gather of parameters."""


@dataclass
class Case:
    """What came out of one case, compared with the exact reduction on the same data."""

    loss_difference: float
    """Relative difference of the loss of the first step."""
    norm_difference: float
    """Relative difference of the gradient norm of the first step."""
    moment_difference: float
    """Largest difference in a tensor's first moments after the first step, relative to its largest. They are a tenth of its gradient."""
    is_same_again: bool
    """True if a second run gave the same bits."""
    drops_bad_steps: bool
    """True if a step with a loss that is not finite on one rank was dropped, and changed no bit of the state."""
    is_that_of_deepspeeds_gather: bool | None
    """True if DeepSpeed's own gather of parameters gave the same bits as this project's. None for cases that are not in GATHERING."""


@dataclass
class Outcome:
    """What came out of a training of STEPS steps and the bad one."""

    losses: list[float]
    norms: list[float]
    moments: dict[str, torch.Tensor]
    """First moments after the first step, by name."""
    state: dict[str, torch.Tensor]
    """Everything after the last step, by name."""
    dropped: bool
    """True if the bad step changed nothing."""


class ArrivesWhenWaitedFor:
    """A broadcast that delivers nothing before it is waited for. All ranks wait for the same ones in the same order."""

    def __init__(self, tensor: torch.Tensor, source: int) -> None:
        self.tensor, self.source = tensor, source

    def wait(self) -> None:
        dist.broadcast(self.tensor, self.source)


def train(case: dict[str, Any], reduction: ResolvedReduction, context: DistContext, most_ranks: int = MOST_RANKS) -> Outcome:
    """most_ranks: on more ranks DeepSpeed gathers parameters."""
    case = dict(case)
    engine_module.MOST_RANKS = most_ranks
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
                "reduction": reduction,
                **case,
            },
        }
    )
    torch.manual_seed(0)
    model_with_loss = ModelWithLoss(network, label_smoothing=0.1)
    lively(model_with_loss)
    engine = Engine(model_with_loss, config, context, reduction)
    found = Outcome([], [], {}, {}, False)
    for step in range(STEPS + 1):
        before = state_of(engine) if step == BAD_STEP else {}
        for micro_batch in range(2):
            torch.manual_seed(100 * step + 10 * micro_batch + context.rank)
            images_BCHW = torch.randn(2, 3, 32, 32)
            if step == BAD_STEP and micro_batch == 0 and context.rank == context.world_size - 1:
                images_BCHW[0, 0, 0, 0] = torch.inf
            engine.micro_step(images_BCHW, torch.randint(0, 5, (2,)), scale)
        engine.reduce()
        result = engine.optimizer_step(0.01)
        if step == BAD_STEP:
            found.dropped = not result.is_taken and same(before, state_of(engine))
            continue
        assert result.is_taken
        found.losses.append(result.loss)
        found.norms.append(float(result.norm))
        if step == 0:
            found.moments = {name: tensor for name, tensor in engine.optimizer_state().items() if name.startswith("exp_avg.")}
    found.state = state_of(engine)
    return found


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def state_of(engine: Engine) -> dict[str, torch.Tensor]:
    average = {f"average.{name}": tensor for name, tensor in engine.average_state().items()}
    return engine.model_state() | engine.optimizer_state() | average


def compared(case: dict[str, Any], exact: Outcome, context: DistContext) -> Case:
    """exact: what came out of the exact reduction, which has the same bits at every stage and loss scale."""
    fast, again = train(case, "fast", context), train(case, "fast", context)
    apart = {name: (tensor - exact.moments[name]).abs().max() / exact.moments[name].abs().max() for name, tensor in fast.moments.items()}
    return Case(
        abs(fast.losses[0] / exact.losses[0] - 1),
        abs(fast.norms[0] / exact.norms[0] - 1),
        max(map(float, apart.values()), default=0.0),
        (again.losses, again.norms) == (fast.losses, fast.norms) and same(again.state, fast.state),
        fast.dropped and exact.dropped,
        is_that_of_deepspeeds_gather(case, {"fast": fast, "exact": exact}, context) if case in GATHERING else None,
    )


def is_that_of_deepspeeds_gather(case: dict[str, Any], own: dict[ResolvedReduction, Outcome], context: DistContext) -> bool:
    others = {reduction: train(case, reduction, context, most_ranks=1) for reduction in own}
    return all(others[name].losses == outcome.losses and same(others[name].state, outcome.state) for name, outcome in own.items())


def main() -> None:
    DistContext.start_broadcast = lambda self, tensor, source: ArrivesWhenWaitedFor(tensor, source)  # type: ignore[method-assign,assignment,return-value]
    with init_distributed() as context:
        exact = train({"zero_stage": 1}, "exact", context)
        found: dict[str, Any] = {name: asdict(compared(case, exact, context)) for name, case in CASES.items()}
        found["auto"] = {}
        for nodes in (1, context.world_size):
            socket.gethostname = lambda: f"node{context.rank % nodes}"  # noqa: B023
            found["auto"][nodes] = resolved("auto", context)
        if context.is_rank0:
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
