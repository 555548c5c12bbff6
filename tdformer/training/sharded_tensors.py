"""Joins tensors of which every rank keeps a part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from tdformer.distributed.context import DistContext

BUCKET = 16_000_000
"""Elements that are joined in one collective. A rank's device needs room for so many in float32."""


@dataclass(frozen=True)
class Part:
    """This rank's part of a tensor: some of its elements in flat order, from the index `start` on. A rank may have none."""

    name: str
    shape: torch.Size
    start: int
    values: torch.Tensor
    """Flat. Elements after the end of the tensor are padding, and are left out."""

    @property
    def numel(self) -> int:
        """Number of elements of the full tensor."""
        return self.shape.numel()


def join(parts: Sequence[Part], context: DistContext) -> dict[str, torch.Tensor]:
    """Return the full tensors by name, float32 on the CPU. Collective; rank 0 gets all of them, and the others none.

    All ranks give the same names and shapes, in the same order. Each element is kept by exactly one rank, so that the sum over the
    ranks is exact. There is one sum for each BUCKET elements, and not one for each tensor.
    """
    full: dict[str, torch.Tensor] = {}
    for bucket in _buckets(parts):
        joined = context.all_reduce_sum(_own_values(bucket, context.device))
        if context.is_rank0:
            tensors = joined.to("cpu", copy=True).split([part.numel for part in bucket])
            full |= {part.name: tensor.view(part.shape).clone() for part, tensor in zip(bucket, tensors, strict=True)}
    return full


def _buckets(parts: Sequence[Part]) -> Iterator[list[Part]]:
    bucket: list[Part] = []
    for part in parts:
        if bucket and sum(one.numel for one in bucket) + part.numel > BUCKET:
            yield bucket
            bucket = []
        bucket.append(part)
    if bucket:
        yield bucket


def _own_values(bucket: Sequence[Part], device: torch.device) -> torch.Tensor:
    """Return the bucket's tensors behind one another, with zeros in place of what other ranks keep."""
    own, end = torch.zeros(sum(part.numel for part in bucket), device=device), 0
    for part in bucket:
        tensor, end = own[end : end + part.numel], end + part.numel
        room = tensor[part.start :]
        room[: part.values.numel()].copy_(part.values[: room.numel()])
    return own
