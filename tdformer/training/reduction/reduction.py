"""How the gradients of one optimizer step are summed over the ranks, and given to the optimizer: exactly, or fast.

BatchNorm statistics and losses are few numbers. Both ways add them up with BatchStatistics.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from tdformer.config.training import ResolvedReduction, TrainingConfig, WantedReduction
from tdformer.distributed.context import DistContext
from tdformer.training.deepspeed_insides import DeepSpeedInsides
from tdformer.training.reduction.batch_statistics import BatchStatistics
from tdformer.training.reduction.exact_gradients import ExactGradients
from tdformer.training.reduction.fixed_point import SQUARE_UNITS, of_limbs, sum_of_squares

NOT_FINITE = "the loss or a gradient is not finite"
TOO_LARGE = "a gradient is larger than 7e13, the most that training.reduction=exact adds up,"
PROBLEMS = 2
"""What ExactGradients.problems counts."""


@dataclass(frozen=True)
class StepResult:
    """What came out of one optimizer step. It is the same on all ranks."""

    loss: float
    """The mean over the global batch."""
    norm: torch.Tensor | float
    """L2 norm of the gradient before clipping, a scalar. The host may wait when it reads it. It is not finite if the gradient is not."""
    is_taken: bool
    """False if loss or gradient were not finite, or too large. Then nothing has changed, and the global batch is dropped."""
    problem: str = NOT_FINITE
    """Why a step was not taken: the beginning of a sentence for the user."""


class Reduction(Protocol):
    """One optimizer step is: `micro_step` for each of this rank's micro-batches, then `reduce`, then `step`. All are collective."""

    def sums(self) -> list[torch.Tensor]:
        """Return the sums of the global batch that are kept on this rank."""

    def micro_step(self, images_BCHW: torch.Tensor, labels: torch.Tensor, loss_scale: float) -> torch.Tensor:
        """Run one micro-batch forward and backward. Return its loss, a scalar, the mean over its samples.

        loss_scale: a power of two, the same in all micro-steps of an optimizer step. It is taken out of the gradients.
        """

    def reduce(self) -> None:
        """Make means over all ranks."""

    def step(self) -> StepResult:
        """Step the optimizer if loss and gradients are finite, and drop the global batch otherwise."""

    def close(self) -> None:
        """Let go of the parameters, so that they can be freed."""


class ExactReduction:
    """Makes the same bits on any number of ranks and at any ZeRO stage.

    ExactGradients takes the gradients. DeepSpeed finds zeros, sends none of them, and gets the exact means just before the step.
    """

    def __init__(
        self, insides: DeepSpeedInsides, trained: Sequence[nn.Parameter], context: DistContext, training: TrainingConfig, bucket: int
    ) -> None:
        """trained: the parameters that are trained. bucket: elements of a buffer in which gradients are sent."""
        self.insides, self.trained, self.clip_grad = insides, trained, training.clip_grad
        self.accumulation = training.accumulation(context.world_size)
        micro_batches = self.accumulation * context.world_size
        self.statistics = BatchStatistics(list(insides.engine.module.buffers()), context, micro_batches, extra=len(SQUARE_UNITS) + PROBLEMS)
        kept, adds_up = [insides.kept_span(parameter) for parameter in trained], sends_sums(training, context.world_size)
        self.gradients = ExactGradients(trained, context, micro_batches, bucket, kept, sends_sums=adds_up)
        self._passed, self._loss, self._norm = 0, 0.0, 0.0
        insides.switch_off_reduction()

    def sums(self) -> list[torch.Tensor]:
        return [self.statistics.sums, self.gradients.sums, self.gradients.unsent]

    def micro_step(self, images_BCHW: torch.Tensor, labels: torch.Tensor, loss_scale: float) -> torch.Tensor:
        self._passed += 1
        with self.statistics.micro_batch(), self.gradients.micro_batch(loss_scale, is_last=self._passed == self.accumulation):
            loss = self.insides.engine(images_BCHW, labels)
            self.insides.engine.backward(loss * loss_scale)
        self.statistics.add_loss(loss)
        return loss.detach()

    def reduce(self) -> None:
        self.statistics.extra[: len(SQUARE_UNITS)] = sum_of_squares(self.gradients.finish())
        self.statistics.extra[len(SQUARE_UNITS) :] = self.gradients.problems()
        self.statistics.reduce()
        result = self.statistics.result.tolist()
        self._loss, self._norm = self.statistics.loss(result), _norm(result[-len(SQUARE_UNITS) - PROBLEMS :])

    def step(self) -> StepResult:
        is_taken = math.isfinite(self._loss) and math.isfinite(self._norm)
        if is_taken:
            self._take_step()
        else:
            with self.insides.resting_optimizer():
                self.insides.step()
        self.statistics.clear()
        self.gradients.clear()
        self._passed = 0
        return StepResult(self._loss, self._norm, is_taken, TOO_LARGE if self._norm == math.inf else NOT_FINITE)

    def close(self) -> None:
        self.gradients.close()

    def _take_step(self) -> None:
        factor = 1.0 if self.clip_grad is None or self._norm <= self.clip_grad else self.clip_grad / self._norm
        for parameter, values in self.gradients.kept(factor):
            self.insides.set_kept_gradient(self.trained[parameter], values)
        self.insides.step()
        self.statistics.keep()


def description(reduction: ResolvedReduction, training: TrainingConfig) -> str:
    """Return the end of a sentence for the user that says how gradients are reduced."""
    if reduction == "exact":
        return "exactly: the same bits on any number of ranks (training.reduction)"
    return f"fast, in {training.communication_dtype} by DeepSpeed: the bits depend on the number of ranks (training.reduction)"


def note_on_kernels(reduction: ResolvedReduction, deterministic: bool, device_type: str) -> list[str]:
    """Return a note for the user of exact sums on a GPU whose kernels may give other bits each time."""
    if reduction != "exact" or deterministic or device_type != "cuda":
        return []
    return ["gradients are summed exactly, but kernels of a GPU may round otherwise each time; training.deterministic=true takes others"]


def sends_sums(training: TrainingConfig, ranks: int) -> bool:
    """Tell whether ExactReduction sends sums of a rank's micro-batches instead of each micro-batch's gradients.

    A sum has 16 bytes per parameter, and the gradients of a micro-batch 4. ZeRO 2 and 3 save the memory that such sums take.
    """
    return ranks > 1 and training.accumulation(ranks) > 4 and training.zero_stage < 2


def _norm(numbers: Sequence[int]) -> float:
    """Return the L2 norm of the mean gradient: NaN or infinite if a gradient of a micro-batch was NaN or infinite, or too large.

    numbers: the sum of its squares, in limbs, and how many ranks had a gradient that was not finite, and one that was too large.
    """
    *limbs, not_finite, too_large = numbers
    if not_finite:
        return math.nan
    return math.inf if too_large else math.sqrt(of_limbs(limbs, SQUARE_UNITS))


class FastReduction:
    """Leaves gradients to DeepSpeed, which sends sums in buckets while the backward pass goes on, and shards what it keeps.

    Rounded sums depend on their order, so that the bits depend on the number of ranks. DeepSpeed also accumulates, clips, and drops a step
    whose gradient norm is not finite. A loss that is not finite makes every gradient NaN, so that all ranks find it in the norm.
    """

    def __init__(
        self, insides: DeepSpeedInsides, trained: Sequence[nn.Parameter], context: DistContext, training: TrainingConfig, bucket: int
    ) -> None:
        """Takes what ExactReduction takes. DeepSpeed knows the bucket from its configuration."""
        self.insides, self.trained, self.clip_grad = insides, trained, training.clip_grad
        self.accumulation = training.accumulation(context.world_size)
        self.statistics = BatchStatistics(list(insides.engine.module.buffers()), context, self.accumulation * context.world_size)
        self._passed, self._scale = 0, 1.0
        self._result = torch.empty(0)

    def sums(self) -> list[torch.Tensor]:
        return [self.statistics.sums]

    def micro_step(self, images_BCHW: torch.Tensor, labels: torch.Tensor, loss_scale: float) -> torch.Tensor:
        with self.statistics.micro_batch():
            loss = self.insides.engine(images_BCHW, labels)
            self.insides.engine.backward(self.insides.scaled(_nan_unless_finite(loss), loss_scale))
        self.statistics.add_loss(loss)
        self._passed, self._scale = self._passed + 1, loss_scale
        if self._passed < self.accumulation:
            self.insides.engine.step()  # only counts the micro-batch
        return loss.detach()

    def reduce(self) -> None:
        self.statistics.reduce()
        self._result = self.statistics.result.to("cpu", non_blocking=True)

    def step(self) -> StepResult:
        norm, is_taken = self.insides.step_if_finite(self.trained, self._scale, self.clip_grad)
        loss = self.statistics.loss(self._result.tolist())  # it has arrived, because the host has waited for the norm
        if is_taken and math.isfinite(loss):
            self.statistics.keep()
        self.statistics.clear()
        self._passed = 0
        return StepResult(loss, norm, is_taken)

    def close(self) -> None:
        """DeepSpeed lets go of the parameters itself."""


def _nan_unless_finite(loss: torch.Tensor) -> torch.Tensor:
    """Return a loss whose gradients are NaN if it is not finite."""
    return loss * torch.where(torch.isfinite(loss.detach()), 1.0, torch.nan)


def resolved(wanted: WantedReduction, context: DistContext) -> ResolvedReduction:
    """Return what training.reduction means for a run that starts now: auto is exact on one node, and fast on several. Collective."""
    if wanted != "auto":
        return wanted
    return "exact" if len(set(context.all_gather(socket.gethostname()))) == 1 else "fast"
