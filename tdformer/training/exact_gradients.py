"""ExactGradients: sums of gradients over all ranks that do not depend on any order, sent while the backward pass goes on.

Each parameter is cut into one part per rank, as ZeRO 3 cuts it, and a rank adds up its own part. The parameters, last one first, are put
into buckets. As soon as a bucket has all its gradients, every rank sends each other rank its part, and the backward pass goes on. The
receiver adds integers (fixed_point.py). So a gradient is sent once, in float32, as a reduce-scatter would send it.
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
from tdformer.training.fixed_point import LARGEST_GRADIENT, gradient_exponent, to_fixed

BUCKETS_IN_FLIGHT = 2
"""Buckets that a rank sends at once [our choice]. It bounds their memory, since each takes 8 bytes per element."""


class Slot(NamedTuple):
    """Where a rank keeps the sums of its part of one parameter."""

    parameter: int
    size: int
    """Elements of the whole parameter."""
    part: int
    """Elements of every rank's part. Rank r has those from r * part on; the last parts are padded with zeros."""
    start: int
    """Where the part begins in the sums."""


class Bucket:
    """Parameters that are sent together. `rows` holds their gradients of one micro-batch, float32 [ranks, elements], a row per rank."""

    def __init__(self, slots: Sequence[Slot]) -> None:
        self.slots, self.start = list(slots), slots[0].start
        self.elements = sum(slot.part for slot in slots)
        self.rows: torch.Tensor | None = None
        self.awaited = {slot.parameter for slot in slots}

    def take_rows(self, ranks: int, device: torch.device) -> torch.Tensor:
        """Return the rows, and begin anew."""
        rows = torch.zeros(ranks, self.elements, device=device) if self.rows is None else self.rows
        self.rows, self.awaited = None, {slot.parameter for slot in self.slots}
        return rows


class Message(NamedTuple):
    """A bucket on its way. `sent` is kept until it has arrived."""

    bucket: Bucket
    work: dist.Work
    sent: torch.Tensor
    received: torch.Tensor


class ExactGradients:
    """Adds up the gradients of the micro-batches of one optimizer step, over all ranks. Zeros are left in the place of every gradient.

    Use `micro_batch` around every backward pass, then `means` once.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], context: DistContext, micro_batches: int, bucket_elements: int, *, sends_sums: bool
    ) -> None:
        """Take over the gradients of parameters.

        parameters: those that are trained, whole or as ZeRO 3 partitions them. micro_batches: their number over all ranks.
        bucket_elements: least elements of a bucket, over all ranks. sends_sums: add up the gradients of this rank's micro-batches, which
        takes 8 bytes per parameter, and send them once, in the last backward pass; instead of sending those of every micro-batch.
        """
        self._context, self._micro_batches, ranks = context, micro_batches, context.world_size
        self.slots = _slots([full_shape(parameter).numel() for parameter in parameters], ranks)
        self._buckets = _buckets(self.slots, -(-bucket_elements // ranks))
        self._exponent, self._scale, self._is_last = gradient_exponent(micro_batches), 1.0, True
        length = sum(slot.part for slot in self.slots)
        self.sums = torch.zeros(length, dtype=torch.int64, device=context.device)
        """This rank's part of all parameters, in the order of slots, in units of 2**_exponent."""
        self.unsent = torch.zeros(length * ranks if sends_sums else 0, dtype=torch.int64, device=context.device)
        """The sums of this rank's micro-batches, bucket by bucket."""
        self._largest = torch.zeros((), device=context.device)
        self._sent = 0
        self._on_the_way: deque[Message] = deque()
        for bucket in self._buckets:
            for slot in bucket.slots:
                parameters[slot.parameter].register_hook(partial(self._take, bucket, slot))

    @contextmanager
    def micro_batch(self, loss_scale: float, *, is_last: bool) -> Iterator[None]:
        """Run one backward pass inside. loss_scale: the factor on its loss, a power of two. is_last: no other follows in this step."""
        self._scale, self._is_last = loss_scale, is_last
        yield
        self._send_up_to(len(self._buckets))  # some have parameters that this backward pass did not reach
        self._sent = 0

    def _take(self, bucket: Bucket, slot: Slot, gradient: torch.Tensor) -> torch.Tensor:
        bucket.awaited.remove(slot.parameter)  # fails if a parameter gets two gradients in one backward pass
        if bucket.rows is None:
            bucket.rows = torch.zeros(self._context.world_size, bucket.elements, device=gradient.device)
        _write(gradient.detach().flatten(), bucket.rows[:, slot.start - bucket.start :][:, : slot.part])
        ready = self._sent
        while ready < len(self._buckets) and not self._buckets[ready].awaited:
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
            unsent = self.unsent[bucket.start * ranks :][: rows.numel()].view(rows.shape)
            unsent += self._fixed(rows)
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
        self.sums[bucket.start :][: bucket.elements] += (self._fixed(rows) if rows.is_floating_point() else rows).sum(0)

    def _fixed(self, gradients: torch.Tensor) -> torch.Tensor:
        return to_fixed(gradients, 2.0**-self._exponent / self._scale)

    def means(self) -> torch.Tensor:
        """Return this rank's part of the means over all micro-batches of all ranks, float32, in the order of slots."""
        self._receive(but=0)
        return (self.sums.double() * 2.0**self._exponent).div_(self._micro_batches).float()

    def problems(self) -> torch.Tensor:
        """Return int64 [2]: whether this rank had a gradient that is not finite, and one that is too large to be added up exactly."""
        is_finite = self._largest.isfinite()
        return torch.stack([~is_finite, is_finite & (self._largest > LARGEST_GRADIENT)]).long()

    def clear(self) -> None:
        self.sums.zero_()
        self.unsent.zero_()
        self._largest.zero_()


def full_shape(parameter: nn.Parameter) -> torch.Size:
    """Return the full shape of a parameter, which ZeRO 3 may have partitioned."""
    return getattr(parameter, "ds_shape", parameter.shape)


def _slots(sizes: Sequence[int], ranks: int) -> list[Slot]:
    """Return the slots of parameters of these sizes, the last parameter first, since its gradient is complete first."""
    slots, start = [], 0
    for parameter in reversed(range(len(sizes))):
        slots.append(Slot(parameter, sizes[parameter], -(-sizes[parameter] // ranks), start))
        start += slots[-1].part
    return slots


def _buckets(slots: Sequence[Slot], least: int) -> list[Bucket]:
    """Put neighbouring slots together until each bucket has `least` elements per rank."""
    buckets, group = [], []
    for slot in slots:
        group.append(slot)
        if sum(one.part for one in group) >= least or slot is slots[-1]:
            buckets.append(Bucket(group))
            group = []
    return buckets


def _write(gradient: torch.Tensor, rows: torch.Tensor) -> None:
    """Write a flat gradient into rows of one part each."""
    part = rows.shape[1]
    whole = len(gradient) // part
    rows[:whole] = gradient[: whole * part].view(whole, part)
    if rest := len(gradient) - whole * part:
        rows[whole, :rest] = gradient[whole * part :]
