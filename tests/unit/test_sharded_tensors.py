"""Tensors of which every rank keeps a part, without the collective: the sum of what the ranks contribute is the full tensor."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tdformer.training import sharded_tensors
from tdformer.training.sharded_tensors import Part, _buckets, _own_values

SHAPES = st.lists(st.sampled_from([(1,), (7,), (3, 5), (2, 3, 4)]), min_size=1, max_size=6)


def cut(name: str, full: torch.Tensor, world_size: int) -> list[Part]:
    """Cut a tensor into equal parts, the last ones padded or empty, as ZeRO 3 does."""
    length = -(-full.numel() // world_size)
    padded = torch.nn.functional.pad(full.flatten(), (0, length * world_size - full.numel()), value=torch.nan)
    starts = (min(rank * length, full.numel()) for rank in range(world_size))
    return [Part(name, full.shape, start, own) for start, own in zip(starts, padded.split(length), strict=True)]


@given(SHAPES, st.integers(1, 7), st.randoms())
def test_what_the_ranks_contribute_adds_up_to_the_tensors(shapes: list[tuple[int, ...]], world_size: int, draw) -> None:  # type: ignore[no-untyped-def]
    fulls = [torch.randn(shape, generator=torch.Generator().manual_seed(draw.randrange(2**31))) for shape in shapes]
    by_rank = list(zip(*(cut(f"t{number}", full, world_size) for number, full in enumerate(fulls)), strict=True))
    total = sum(_own_values(parts, torch.device("cpu")) for parts in by_rank)
    assert torch.equal(total, torch.cat([full.flatten() for full in fulls]))


@given(st.lists(st.integers(1, 40), max_size=20))
def test_each_tensor_is_in_one_bucket_in_its_order(sizes: list[int]) -> None:
    parts = [Part(str(number), torch.Size([size]), 0, torch.empty(0)) for number, size in enumerate(sizes)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharded_tensors, "BUCKET", 50)
        buckets = list(_buckets(parts))
    assert [part.name for part in itertools.chain(*buckets)] == [part.name for part in parts]
    assert all(sum(part.numel for part in bucket) <= 50 for bucket in buckets)
    assert all(sum(part.numel for part in (*one, other[0])) > 50 for one, other in itertools.pairwise(buckets)), "no bucket could take more"
