"""How gradients are cut into parts: one part of each parameter per rank, as ZeRO 3 cuts it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

Span = tuple[int, int]
"""Elements [start, end) of a parameter."""


class Slot(NamedTuple):
    """A slot is the place where a rank keeps the sums of its part of one parameter."""

    parameter: int
    size: int
    """Elements of the whole parameter."""
    part: int
    """Elements of every rank's part. Rank r has those from r * part on; the last parts are padded with zeros."""
    start: int
    """The part begins at this element of the rank's sums."""

    def of_rank(self, rank: int) -> Span:
        """Return the elements of the parameter in a rank's part."""
        return min(rank * self.part, self.size), min((rank + 1) * self.part, self.size)


def slots_of(sizes: Sequence[int], ranks: int) -> list[Slot]:
    """Return the slots of parameters of these sizes, the last parameter first, since its gradient is complete first."""
    slots, start = [], 0
    for parameter in reversed(range(len(sizes))):
        slots.append(Slot(parameter, sizes[parameter], -(-sizes[parameter] // ranks), start))
        start += slots[-1].part
    return slots


def in_buckets(slots: Sequence[Slot], least: int) -> list[list[Slot]]:
    """Put neighbouring slots together until each bucket has `least` elements. The last one may have fewer."""
    buckets: list[list[Slot]] = [[]]
    for slot in slots:
        if sum(one.part for one in buckets[-1]) >= least:
            buckets.append([])
        buckets[-1].append(slot)
    return buckets


def write_rows(gradient: torch.Tensor, rows: torch.Tensor) -> None:
    """Write a flat gradient into rows of one part each."""
    part = rows.shape[1]
    whole = len(gradient) // part
    rows[:whole] = gradient[: whole * part].view(whole, part)
    if rest := len(gradient) - whole * part:
        rows[whole, :rest] = gradient[whole * part :]


def full_shape(parameter: nn.Parameter) -> torch.Size:
    """Return the full shape of a parameter, which ZeRO 3 may have partitioned."""
    return getattr(parameter, "ds_shape", parameter.shape)
