"""ExactGradients: mean gradients over all ranks that do not depend on any order, sent while the backward pass goes on.

Each rank adds up its own part of each parameter (gradient_layout.py). The parameters, last one first, are put into buckets. As soon as a
bucket has all its gradients, every rank sends each other rank its part, and the backward pass goes on. The receiver adds integers
(fixed_point.py), and sends the means to where the optimizer needs them (mean_exchange.py). So a gradient is sent once, in float32, as a
reduce-scatter would send it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from tdformer.distributed.context import DistContext
from tdformer.training.reduction.fixed_point import GRADIENT_UNITS, from_limbs, largest_gradient, piece_of, to_limbs
from tdformer.training.reduction.gradient_layout import Slot, Span, full_shape, in_buckets, slots_of, write_rows
from tdformer.training.reduction.mean_exchange import MeanExchange

LIMBS = len(GRADIENT_UNITS)
BUCKETS_IN_FLIGHT = 2
"""Buckets that a rank sends at once [our choice]. It bounds their memory, since each takes 8 bytes per element."""


class Bucket:
    """A bucket holds parameters that are sent together, and their gradients of one micro-batch."""

    def __init__(self, slots: Sequence[Slot], exchange: MeanExchange) -> None:
        self.slots, self.exchange = slots, exchange
        self.start, self.elements = slots[0].start, sum(slot.part for slot in slots)
        self._gradients: dict[Slot, torch.Tensor] = {}

    def put(self, slot: Slot, gradient: torch.Tensor) -> None:
        if slot in self._gradients:
            raise RuntimeError(f"parameter {slot.parameter} got two gradients in one backward pass; exact sums need one of each.")
        self._gradients[slot] = gradient

    @property
    def is_complete(self) -> bool:
        return len(self._gradients) == len(self.slots)

    def take_rows(self, ranks: int, device: torch.device) -> torch.Tensor:
        """Return the gradients, float32 [ranks, elements], a row for each rank, and begin anew. Those that are missing are zero."""
        rows = torch.zeros(ranks, self.elements, device=device)
        for slot, gradient in self._gradients.items():
            write_rows(gradient.flatten(), rows[:, slot.start - self.start :][:, : slot.part])
        self._gradients.clear()
        return rows


class Message(NamedTuple):
    """This is a bucket on its way. `sent` is kept until it has arrived."""

    bucket: Bucket
    work: dist.Work
    sent: torch.Tensor
    received: torch.Tensor


class ExactGradients:
    """Makes the means over the micro-batches of one optimizer step, over all ranks. Zeros are left in the place of every gradient.

    Use `micro_batch` around every backward pass, then `finish` once. Below ZeRO 3, a parameter may lack its gradient on some ranks. At
    ZeRO 3 all ranks must reach the same parameters in each backward pass, since DeepSpeed gathers those meanwhile.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        context: DistContext,
        micro_batches: int,
        bucket_elements: int,
        kept: Sequence[Span],
        *,
        sends_sums: bool,
    ) -> None:
        """Take over the gradients of parameters. Collective.

        parameters: those that are trained, whole or as ZeRO 3 partitions them. micro_batches: their number over all ranks.
        bucket_elements: least elements of a bucket, over all ranks. kept: the elements of each parameter that this rank's optimizer steps.
        sends_sums: add up the gradients of this rank's micro-batches, which takes 16 bytes per parameter, and send them once, in the last
        backward pass; instead of sending those of every micro-batch.
        """
        self._context, self._micro_batches, ranks = context, micro_batches, context.world_size
        self._scale, self._is_last = 1.0, True
        slots, kept_by_rank = slots_of([full_shape(parameter).numel() for parameter in parameters], ranks), context.all_gather(kept)
        groups = in_buckets(slots, -(-bucket_elements // ranks))
        self._buckets = [Bucket(group, MeanExchange(group, kept_by_rank, context)) for group in groups]
        length = sum(slot.part for slot in slots)
        self.sums = torch.zeros(LIMBS, length, dtype=torch.int64, device=context.device)
        """This rank's part of all parameters, in the order of slots, in limbs."""
        self.unsent = torch.zeros(LIMBS * length * ranks if sends_sums else 0, dtype=torch.int64, device=context.device)
        """The sums of this rank's micro-batches, bucket by bucket, each [ranks, limbs, elements]."""
        self._means = torch.empty(length, device=context.device)
        self._largest = torch.zeros((), device=context.device)
        self._sent = 0
        self._on_the_way: deque[Message] = deque()
        self._hooks = [
            parameters[slot.parameter].register_hook(partial(self._take, bucket, slot)) for bucket in self._buckets for slot in bucket.slots
        ]

    @contextmanager
    def micro_batch(self, loss_scale: float, *, is_last: bool) -> Iterator[None]:
        """Run one backward pass inside. loss_scale: the factor on its loss, a power of two. is_last: no other follows in this step."""
        self._receive(but=0)  # of the micro-batch before, with its loss scale
        self._scale, self._is_last = loss_scale, is_last
        yield
        self._send_up_to(len(self._buckets))  # some have parameters that this backward pass did not reach
        self._sent = 0

    def finish(self) -> torch.Tensor:
        """Wait for all means. Return this rank's part of them, float32, in the order of slots, which may not be the part that it keeps."""
        self._receive(but=0)
        for bucket in self._buckets:
            bucket.exchange.finish()
        return self._means

    def problems(self) -> torch.Tensor:
        """Return int64 [2]: whether this rank had a gradient that is not finite, and one that is too large to be added up exactly."""
        is_finite = self._largest.isfinite()
        return torch.stack([~is_finite, is_finite & (self._largest > largest_gradient(self._micro_batches))]).long()

    def kept(self, factor: float) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield, after `finish`, the means that this rank keeps, times a factor: a parameter's number, and values, float32 and flat."""
        if factor != 1:
            torch._foreach_mul_([bucket.exchange.finish() for bucket in self._buckets], factor)
        for bucket in self._buckets:
            yield from bucket.exchange.by_parameter().items()

    def clear(self) -> None:
        self.sums.zero_()
        self.unsent.zero_()
        self._largest.zero_()
        for bucket in self._buckets:
            bucket.exchange.clear()

    def close(self) -> None:
        """Let go of the parameters."""
        for hook in self._hooks:
            hook.remove()

    # --- while the backward pass goes on ---------------------------------------------------------------------

    def _take(self, bucket: Bucket, slot: Slot, gradient: torch.Tensor) -> torch.Tensor:
        bucket.put(slot, gradient.detach())
        ready = self._sent
        while ready < len(self._buckets) and self._buckets[ready].is_complete:
            ready += 1
        self._send_up_to(ready)
        return torch.zeros_like(gradient)

    def _send_up_to(self, end: int) -> None:
        """Send buckets in their order, which all ranks have in common."""
        while self._sent < end:
            self._send(self._buckets[self._sent])
            self._sent += 1

    def _send(self, bucket: Bucket) -> None:
        ranks = self._context.world_size
        rows = bucket.take_rows(ranks, self._context.device)
        self._largest = torch.maximum(self._largest, torch.linalg.vector_norm(rows, torch.inf) / self._scale)
        if len(self.unsent):
            unsent = self.unsent[LIMBS * bucket.start * ranks :][: LIMBS * rows.numel()].view(ranks, LIMBS, -1)
            for totals, piece in _in_pieces(unsent, rows):
                for number, limb in enumerate(self._limbs(piece)):
                    totals[:, number] += limb
            if not self._is_last:
                return
            rows = unsent
        if ranks == 1:
            self._add(bucket, rows)
            return
        received = torch.empty_like(rows)
        self._on_the_way.append(Message(bucket, self._context.start_all_to_all(received, rows), rows, received))
        self._receive(BUCKETS_IN_FLIGHT)

    def _receive(self, but: int) -> None:
        """Wait for the buckets on their way, except for the last `but` ones."""
        while len(self._on_the_way) > but:
            message = self._on_the_way.popleft()
            self._context.wait(message.work)
            self._add(message.bucket, message.received)

    def _add(self, bucket: Bucket, rows: torch.Tensor) -> None:
        sums = self.sums[:, bucket.start :][:, : bucket.elements]
        for totals, piece in _in_pieces(sums, rows):
            for total, limb in zip(totals, self._limbs(piece) if rows.is_floating_point() else piece.unbind(1), strict=True):
                total += limb.sum(0)
        if self._is_last:
            means = self._means[bucket.start :][: bucket.elements]
            for mean, totals in _in_pieces(means, sums):
                mean.copy_(from_limbs(list(totals), GRADIENT_UNITS).div_(self._micro_batches))
            bucket.exchange.start(means)

    def _limbs(self, gradients: torch.Tensor) -> list[torch.Tensor]:
        return to_limbs(gradients.double().div_(self._scale), GRADIENT_UNITS)


def _in_pieces(one: torch.Tensor, other: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Cut two tensors along their last dimension, which has the same length, so that no piece of the larger has too many values."""
    length = max(1, piece_of(one) * one.shape[-1] // max(one.numel(), other.numel()))
    return zip(one.split(length, -1), other.split(length, -1), strict=True)
