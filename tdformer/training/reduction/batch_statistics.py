"""BatchStatistics: means of BatchNorm statistics and losses over a global batch, to the same bits on any number of ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from tdformer.distributed.context import DistContext
from tdformer.training.reduction.fixed_point import STATISTIC_UNITS, from_limbs, largest_statistic, of_limbs, to_limbs

LIMBS = len(STATISTIC_UNITS)


class BatchStatistics:
    """Adds up the BatchNorm statistics and losses of the micro-batches of one optimizer step, over all ranks.

    Use `micro_batch` around every forward and backward pass, then `reduce` once. Every micro-batch starts from the statistics that the step
    began with, and `keep` sets the mean of the new ones. Momentum therefore counts optimizer steps, and not micro-batches.
    """

    def __init__(self, buffers: Sequence[torch.Tensor], context: DistContext, micro_batches: int, extra: int = 0) -> None:
        """micro_batches: their number over all ranks. extra: numbers of the caller's that are added up with these, in one collective."""
        self._context, self._buffers, self._micro_batches = context, list(buffers), micro_batches
        self._start = [buffer.clone() for buffer in self._buffers]
        self._count = sum(buffer.numel() for buffer in self._buffers)
        self.sums = torch.zeros(LIMBS * self._count + LIMBS + 1 + extra, dtype=torch.int64, device=context.device)
        self._of_statistics = self.sums[: LIMBS * self._count].view(LIMBS, self._count)
        tail = self.sums[LIMBS * self._count :]
        self._of_loss, self._invalid = tail[:LIMBS], tail[LIMBS]
        self.extra = tail[LIMBS + 1 :]
        """The caller's numbers, int64. `reduce` adds up those of all ranks."""
        self.result = tail
        """What the host has to read after `reduce`: give its list to `loss`. The caller's numbers are at its end."""

    @contextmanager
    def micro_batch(self) -> Iterator[None]:
        """Run the forward and the backward pass of one micro-batch inside."""
        if self._buffers:
            torch._foreach_copy_(self._start, self._buffers)
        yield
        if self._buffers:
            self._add(torch.cat([buffer.flatten() for buffer in self._buffers]), self._of_statistics)
            torch._foreach_copy_(self._buffers, self._start)

    def add_loss(self, loss: torch.Tensor) -> None:
        self._add(loss.detach().reshape(1), self._of_loss.view(LIMBS, 1))

    def _add(self, values: torch.Tensor, sums: torch.Tensor) -> None:
        values = values.double()
        self._invalid += (~(values.abs() <= largest_statistic(self._micro_batches))).sum()
        for limb, total in zip(to_limbs(values, STATISTIC_UNITS), sums, strict=True):
            total += limb

    def reduce(self) -> None:
        """Add up the sums of all ranks, in one collective."""
        self._context.all_reduce_sum(self.sums)

    def loss(self, result: Sequence[int]) -> float:
        """Return the mean loss after `reduce`, or NaN if a loss or statistic was not finite, or too large. result: values of `result`."""
        if result[LIMBS]:
            return float("nan")
        return of_limbs(result[:LIMBS], STATISTIC_UNITS) / self._micro_batches

    def keep(self) -> None:
        """Give the network the mean statistics."""
        if self._buffers:
            means = from_limbs(list(self._of_statistics), STATISTIC_UNITS).div_(self._micro_batches)
            parts = means.split([buffer.numel() for buffer in self._buffers])
            torch._foreach_copy_(self._buffers, [part.view(buffer.shape) for part, buffer in zip(parts, self._buffers, strict=True)])

    def clear(self) -> None:
        self.sums.zero_()
