"""GradientAccumulator: the means over a global batch, to the same bits on any number of ranks and at any ZeRO stage.

Float32 sums depend on their order, and therefore on the number of ranks. Here gradients, BatchNorm statistics and losses of the
micro-batches are added in float64 [our choice]. A float64 has 29 bits more than its float32 addends. So the sums are exact, unless the
addends of one element differ by a factor of more than 2**29 / micro-batches. What is rounded away then lies far below the last bit of
the float32 result.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise

import torch
from torch import nn

from tdformer.distributed.context import DistContext

NORM_PIECE = 2**20
"""Gradients that are rounded at once for their norm, so that it takes little memory."""


class GradientAccumulator:
    """Accumulates gradients, BatchNorm statistics and losses of the micro-batches of one optimizer step, over all ranks.

    Use `micro_batch` around every forward and backward pass, then `reduce` once. Every micro-batch starts from the BatchNorm statistics
    that the step began with, and `keep_statistics` sets the mean of the new ones. Momentum therefore counts optimizer steps, and not
    micro-batches.

    The gradients of `parameters` (the trained ones, whole or as ZeRO 3 partitions them) are taken out of the backward pass, and zeros are
    left in their place.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], buffers: Sequence[torch.Tensor], context: DistContext) -> None:
        self.context, self._buffers = context, list(buffers)
        self._start = [buffer.clone() for buffer in self._buffers]
        shapes = [full_shape(parameter) for parameter in parameters] + [buffer.shape for buffer in self._buffers]
        ends = [0, *torch.tensor([shape.numel() for shape in shapes]).cumsum(0).tolist()]
        self.sums = torch.zeros(ends[-1] + 1, dtype=torch.float64, device=context.device)  # the last one holds the losses
        views = [self.sums[start:end].view(shape) for (start, end), shape in zip(pairwise(ends), shapes, strict=True)]
        self.gradients, self._statistics = views[: len(parameters)], views[len(parameters) :]
        """Gradients, float64, in the order and the full shapes of the parameters."""
        self._of_gradients = self.sums[: ends[len(parameters)]]
        for parameter, view in zip(parameters, self.gradients, strict=True):
            parameter.register_hook(partial(_take, view))

    @contextmanager
    def micro_batch(self) -> Iterator[None]:
        """Accumulate the forward and the backward pass inside as one micro-batch."""
        if self._buffers:
            torch._foreach_copy_(self._start, self._buffers)
        yield
        for view, buffer, start in zip(self._statistics, self._buffers, self._start, strict=True):
            view.add_(buffer)
            buffer.copy_(start)

    def add_loss(self, loss: torch.Tensor) -> None:
        self.sums[-1] += loss.detach()

    @property
    def loss(self) -> torch.Tensor:
        """The loss, a scalar, float64: a sum before `reduce`, and the mean after it."""
        return self.sums[-1]

    def reduce(self, micro_batches: int, loss_scale: float = 1.0) -> None:
        """Turn the sums into means over all ranks' micro-batches, in one collective.

        micro_batches: their number over all ranks. loss_scale: the factor on the losses in the backward pass. It is a power of two, so that
        no bit is lost.
        """
        self.context.all_reduce_sum(self.sums).div_(micro_batches)
        if loss_scale != 1:
            self._of_gradients.div_(loss_scale)

    def loss_and_norm(self) -> tuple[float, float]:
        """Return the loss, and the L2 norm over all gradients, which is not finite if any gradient is not. The host waits once for both.

        The norm is that of the gradients rounded to float32. In float64 their last bits may depend on the order of the sums.
        """
        pieces = self._of_gradients.split(NORM_PIECE)
        norms = [torch.linalg.vector_norm(piece.float(), dtype=torch.float64) for piece in pieces]
        loss, norm = torch.stack([self.loss, torch.linalg.vector_norm(torch.stack(norms))]).tolist()
        return loss, norm

    def clip(self, largest_norm: float, norm: float) -> None:
        if norm > largest_norm:
            self._of_gradients.mul_(largest_norm / norm)

    def keep_statistics(self) -> None:
        for view, buffer in zip(self._statistics, self._buffers, strict=True):
            buffer.copy_(view)

    def clear(self) -> None:
        self.sums.zero_()


def _take(into: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    into.add_(gradient)
    return torch.zeros_like(gradient)


def full_shape(parameter: nn.Parameter) -> torch.Size:
    """Return the full shape of a parameter, which ZeRO 3 may have partitioned."""
    return getattr(parameter, "ds_shape", parameter.shape)


def is_finite(*values: float) -> bool:
    return all(math.isfinite(value) for value in values)
