"""How the gradients of one optimizer step are summed over the ranks, and given to the optimizer: exactly, or fast.

BatchNorm statistics and losses are few numbers. Both ways add them up with GradientAccumulator.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from tdformer.config.training import ResolvedReduction, WantedReduction
from tdformer.distributed.context import DistContext
from tdformer.training.deepspeed_insides import DeepSpeedInsides
from tdformer.training.gradient_accumulator import GradientAccumulator, is_finite

DESCRIPTIONS: dict[ResolvedReduction, str] = {
    "exact": "exactly, in float64: the same bits on any number of ranks (training.reduction)",
    "fast": "fast, in float32 by DeepSpeed: the bits depend on the number of ranks (training.reduction)",
}
"""The end of a sentence for the user, by training.reduction."""


@dataclass(frozen=True)
class StepResult:
    """What came out of one optimizer step. It is the same on all ranks."""

    loss: float
    """The mean over the global batch."""
    norm: torch.Tensor | float
    """L2 norm of the gradient before clipping, a scalar. The host may wait when it reads it. It is not finite if the gradient is not."""
    is_taken: bool
    """False if loss or gradient were not finite. Then nothing has changed, and the global batch is dropped."""


class Reduction(Protocol):
    """One optimizer step is: `micro_step` for each of this rank's micro-batches, then `reduce`, then `step`. All are collective."""

    accumulator: GradientAccumulator

    def micro_step(self, images_BCHW: torch.Tensor, labels: torch.Tensor, loss_scale: float) -> torch.Tensor:
        """Run one micro-batch forward and backward. Return its loss, a scalar, the mean over its samples."""

    def reduce(self, loss_scale: float) -> None:
        """Make means over all ranks. loss_scale: the one that the micro-steps had. It is a power of two."""

    def step(self) -> StepResult:
        """Step the optimizer if loss and gradients are finite, and drop the global batch otherwise."""


class ExactReduction:
    """Makes the same bits on any number of ranks and at any ZeRO stage.

    GradientAccumulator takes the gradients. DeepSpeed finds zeros, so that its own reduction in float32 does not matter, and gets the exact
    means just before the step.
    """

    def __init__(
        self, insides: DeepSpeedInsides, trained: Sequence[nn.Parameter], context: DistContext, accumulation: int, clip_grad: float | None
    ) -> None:
        """trained: the parameters that are trained. accumulation: micro-batches of a rank in one optimizer step."""
        self.insides, self.trained, self.clip_grad = insides, trained, clip_grad
        self.accumulator = GradientAccumulator(trained, list(insides.engine.module.buffers()), context)
        self._micro_batches = accumulation * context.world_size
        self._loss = self._norm = 0.0
        insides.switch_off_reduction()

    def micro_step(self, images_BCHW: torch.Tensor, labels: torch.Tensor, loss_scale: float) -> torch.Tensor:
        with self.accumulator.micro_batch():
            loss = self.insides.engine(images_BCHW, labels)
            self.insides.engine.backward(loss * loss_scale)
        self.accumulator.add_loss(loss)
        return loss.detach()

    def reduce(self, loss_scale: float) -> None:
        self.accumulator.reduce(self._micro_batches, loss_scale)
        self._loss, self._norm = self.accumulator.loss_and_norm()

    def step(self) -> StepResult:
        is_taken = is_finite(self._loss, self._norm)
        if is_taken:
            self._take_step()
        else:
            with self.insides.resting_optimizer():
                self.insides.engine.step()
        self.accumulator.clear()
        return StepResult(self._loss, self._norm, is_taken)

    def _take_step(self) -> None:
        if self.clip_grad is not None:
            self.accumulator.clip(self.clip_grad, self._norm)
        for parameter, gradient in zip(self.trained, self.accumulator.gradients, strict=True):
            self.insides.set_gradient(parameter, gradient.float())
        self.insides.engine.step()
        self.accumulator.keep_statistics()


class FastReduction:
    """Leaves gradients to DeepSpeed, which sends float32 sums in buckets while the backward pass goes on, and shards what it keeps.

    Float32 sums depend on their order, so that the bits depend on the number of ranks. DeepSpeed also accumulates, clips, and drops a step
    whose gradient norm is not finite. A loss that is not finite makes every gradient NaN, so that all ranks find it in the norm.
    """

    def __init__(
        self, insides: DeepSpeedInsides, trained: Sequence[nn.Parameter], context: DistContext, accumulation: int, clip_grad: float | None
    ) -> None:
        """Takes what ExactReduction takes."""
        self.insides, self.trained, self.accumulation, self.clip_grad = insides, trained, accumulation, clip_grad
        self.accumulator = GradientAccumulator([], list(insides.engine.module.buffers()), context)
        self._micro_batches = accumulation * context.world_size
        self._passed, self._scale = 0, 1.0
        self._loss = torch.zeros(())

    def micro_step(self, images_BCHW: torch.Tensor, labels: torch.Tensor, loss_scale: float) -> torch.Tensor:
        with self.accumulator.micro_batch():
            loss = self.insides.engine(images_BCHW, labels)
            self.insides.engine.backward(self.insides.scaled(_nan_unless_finite(loss), loss_scale))
        self.accumulator.add_loss(loss)
        self._passed += 1
        if self._passed < self.accumulation:
            self.insides.engine.step()  # only counts the micro-batch
        return loss.detach()

    def reduce(self, loss_scale: float) -> None:
        self.accumulator.reduce(self._micro_batches)
        self._loss, self._scale = self.accumulator.loss.to("cpu", non_blocking=True), loss_scale

    def step(self) -> StepResult:
        norm, is_taken = self.insides.step_if_finite(self.trained, self._scale, self.clip_grad)
        loss = float(self._loss)  # it has arrived, because the host has waited for the norm
        if is_taken:
            self.accumulator.keep_statistics()
        self.accumulator.clear()
        self._passed = 0
        return StepResult(loss, norm, is_taken)


def _nan_unless_finite(loss: torch.Tensor) -> torch.Tensor:
    """Return a loss whose gradients are NaN if it is not finite."""
    return loss * torch.where(torch.isfinite(loss.detach()), 1.0, torch.nan)


def resolved(wanted: WantedReduction, context: DistContext) -> ResolvedReduction:
    """Return what training.reduction means for a run that starts now: auto is exact on one node, and fast on several. Collective."""
    if wanted != "auto":
        return wanted
    return "exact" if len(set(context.all_gather(socket.gethostname()))) == 1 else "fast"
