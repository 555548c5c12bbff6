"""Adds up named sums over the ranks."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TypeVar

import torch

from tdformer.distributed.context import DistContext

Key = TypeVar("Key", bound=Hashable)


def add_up(sums: Mapping[Key, torch.Tensor], context: DistContext) -> dict[Key, torch.Tensor]:
    """Return the sums over all ranks, float64 on the CPU, in the order of the first rank that has any. Collective.

    A rank has none if there are fewer batches than ranks.
    """
    gathered = context.all_gather([(key, tuple(value.shape)) for key, value in sums.items()])
    shapes = {key: torch.Size(shape) for of_rank in gathered for key, shape in of_rank}
    if not shapes:
        return {}
    own = [sums[key].double().cpu() if key in sums else torch.zeros(shape, dtype=torch.float64) for key, shape in shapes.items()]
    total = context.all_reduce_sum(torch.cat([value.flatten() for value in own]))
    parts = total.split([shape.numel() for shape in shapes.values()])
    return {key: part.view(shape) for (key, shape), part in zip(shapes.items(), parts, strict=True)}
