"""Exact sums of gradients: the same bits in any order, on any number of ranks, with any buckets, whichever parts the ranks keep."""

from __future__ import annotations

import math
from fractions import Fraction
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tdformer.training.reduction import fixed_point
from tdformer.training.reduction.exact_gradients import ExactGradients
from tdformer.training.reduction.fixed_point import (
    GRADIENT_UNITS,
    SQUARE_UNITS,
    STATISTIC_UNITS,
    from_limbs,
    largest_gradient,
    largest_statistic,
    of_limbs,
    sum_of_squares,
    to_limbs,
)
from tdformer.training.reduction.gradient_layout import Span
from tests.unit.thread_ranks import ThreadContext, on_ranks

LARGEST = largest_gradient(64)
float32 = st.floats(-LARGEST, LARGEST, width=32)


# --- fixed point ---------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=200)
@given(st.lists(float32, min_size=1, max_size=64), st.randoms(use_true_random=False))
def test_no_order_and_no_grouping_of_addends_changes_a_bit(values: list[float], random: object) -> None:
    def total(addends: list[float]) -> list[int]:
        return [int(limb.sum()) for limb in to_limbs(torch.tensor(addends, dtype=torch.float64), GRADIENT_UNITS)]

    whole = total(values)
    random.shuffle(values)
    cut = random.randint(0, len(values))
    assert [one + other for one, other in zip(total(values[:cut]), total(values[cut:]), strict=True)] == whole
    found = sum(limb * Fraction(2) ** exponent for limb, exponent in zip(whole, GRADIENT_UNITS, strict=True))
    assert abs(found - sum(map(Fraction, values))) <= len(values) * Fraction(2) ** GRADIENT_UNITS[1] / 2
    tensors = [torch.tensor(limb) for limb in whole]
    assert float(from_limbs(tensors, GRADIENT_UNITS)) == pytest.approx(float(found), rel=1e-12, abs=1e-17)


@pytest.mark.parametrize("micro_batches", [1, 2, 3, 64, 100, 4096, 10_000])
def test_as_many_of_the_largest_as_are_allowed_do_not_overflow(micro_batches: int) -> None:
    for largest, units in ((largest_gradient(micro_batches), GRADIENT_UNITS), (largest_statistic(micro_batches), STATISTIC_UNITS)):
        limbs = to_limbs(torch.tensor([largest, -largest], dtype=torch.float64), units)
        assert limbs[0].tolist() == [int(limbs[0][0]), -int(limbs[0][0])]
        assert int(limbs[0][0]) * micro_batches <= 2**62
        assert 2 ** (units[0] - units[1]) * micro_batches <= 2**62
    squares = sum_of_squares(torch.tensor([largest_gradient(micro_batches)]))
    assert all(0 <= limb <= 2**30 for limb in squares.tolist())


@settings(deadline=None, max_examples=200)
@given(st.floats(-1e9, 1e9, width=32))
def test_a_statistic_is_written_to_the_last_unit(value: float) -> None:
    limbs = [int(limb) for limb in to_limbs(torch.tensor(value, dtype=torch.float64), STATISTIC_UNITS)]
    assert abs(Fraction(of_limbs(limbs, STATISTIC_UNITS)) - Fraction(value)) <= Fraction(1, 2**51)


@settings(deadline=None, max_examples=200)
@given(st.lists(float32, min_size=1, max_size=50), st.randoms(use_true_random=False))
def test_the_norm_depends_on_no_order_and_is_right(values: list[float], random: object) -> None:
    whole = sum_of_squares(torch.tensor(values)).tolist()
    expected = math.sqrt(sum(Fraction(value) ** 2 for value in values))
    assert math.sqrt(of_limbs(whole, SQUARE_UNITS)) == pytest.approx(expected, rel=1e-12, abs=1e-15)
    random.shuffle(values)
    cut = random.randint(0, len(values))
    parts = [sum_of_squares(torch.tensor(part)) for part in (values[:cut], values[cut:]) if part]
    assert of_limbs(sum(parts).tolist(), SQUARE_UNITS) == of_limbs(whole, SQUARE_UNITS)


# --- over ranks ----------------------------------------------------------------------------------------------


def gradients(sizes: list[int], micro_batches: int, seed: int) -> list[list[torch.Tensor]]:
    """Return a gradient for each micro-batch and parameter, with sizes of elements from 2**-60 to 2**6."""
    generator = torch.Generator().manual_seed(seed)
    return [
        [
            torch.randn(size, generator=generator) * 2.0 ** torch.randint(-60, 4, (size,), generator=generator).clamp(min=-60)
            for size in sizes
        ]
        for _ in range(micro_batches)
    ]


def kept_spans(stage: int, sizes: list[int], rank: int, ranks: int) -> list[Span]:
    """Return what DeepSpeed keeps at a ZeRO stage: everything, a share of all parameters in a row, or a part of each parameter."""
    if stage == 0:
        return [(0, size) for size in sizes]
    if stage == 3:
        return [(min(rank * -(-size // ranks), size), min((rank + 1) * -(-size // ranks), size)) for size in sizes]
    share, spans, before = -(-sum(sizes) // ranks), [], 0
    for size in sizes:
        start, end = (min(max(edge * share - before, 0), size) for edge in (rank, rank + 1))
        spans.append((start, end) if start < end else (0, 0))
        before += size
    return spans


class Ranks:
    """The exact sums of some micro-batches, spread over ranks: means as whole parameters, and the norm."""

    def __init__(
        self,
        given: list[list[torch.Tensor]],
        ranks: int,
        stage: int,
        bucket: int,
        *,
        sends_sums: bool,
        scale: float = 1.0,
        factor: float = 1.0,
    ) -> None:
        self.sizes, self.stage, self.scale = [len(one) for one in given[0]], stage, scale

        def work(context: ThreadContext) -> tuple[dict[int, torch.Tensor], torch.Tensor, torch.Tensor, list[Span]]:
            parameters = [nn.Parameter(torch.zeros(size)) for size in self.sizes]
            kept = kept_spans(stage, self.sizes, context.rank, ranks)
            exact = ExactGradients(parameters, context, len(given), bucket, kept, sends_sums=sends_sums)
            own = given[context.rank :: ranks]
            for number, of_parameters in enumerate(own):
                with exact.micro_batch(scale, is_last=number == len(own) - 1):
                    loss = sum((parameter * one).sum() for parameter, one in zip(parameters, of_parameters, strict=True))
                    (loss * scale).backward()
                assert not any(parameter.grad.any() for parameter in parameters)
            numbers = context.all_reduce_sum(torch.cat([sum_of_squares(exact.finish()), exact.problems()]))
            found = {parameter: values.clone() for parameter, values in exact.kept(factor)}
            exact.clear()
            assert not exact.sums.any()
            return found, numbers[:-2], numbers[-2:], kept

        self.found = on_ranks(ranks, work)
        self.squares, self.problems = self.found[0][1].tolist(), self.found[0][2].tolist()

    def means(self) -> list[torch.Tensor]:
        whole = [torch.full((size,), torch.nan) for size in self.sizes]
        for parts, _, _, kept in self.found:
            for parameter, values in parts.items():
                start, end = kept[parameter]
                whole[parameter][start:end] = values
        return whole


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    ranks=st.integers(1, 5),
    accumulation=st.integers(1, 3),
    stage=st.sampled_from([0, 1, 3]),
    bucket=st.integers(1, 120),
    sends_sums=st.booleans(),
    scale=st.sampled_from([1.0, 2.0**12]),
    piece=st.integers(1, 100),
    seed=st.integers(0, 2**31),
)
def test_means_and_norm_are_those_of_one_rank_to_the_last_bit(
    sizes: list[int], ranks: int, accumulation: int, stage: int, bucket: int, sends_sums: bool, scale: float, piece: int, seed: int
) -> None:
    given = gradients(sizes, ranks * accumulation, seed)
    with mock.patch.object(fixed_point, "CPU_PIECE", piece):
        several = Ranks(given, ranks, stage, bucket, sends_sums=sends_sums, scale=scale)
    alone = Ranks(given, 1, 0, 10**6, sends_sums=False)
    assert several.problems == alone.problems == [0, 0]
    assert several.squares == alone.squares
    for one, other, parameter in zip(several.means(), alone.means(), range(len(sizes)), strict=True):
        assert torch.equal(one, other)
        expected = torch.stack([of_parameters[parameter] for of_parameters in given]).double().mean(0)
        torch.testing.assert_close(one.double(), expected, rtol=1e-6, atol=2.0 ** GRADIENT_UNITS[1])


def test_clipping_takes_a_factor_of_all_that_is_kept() -> None:
    given = gradients([5, 3], 4, seed=0)
    whole, clipped = (Ranks(given, 2, 1, 1, sends_sums=False, factor=factor) for factor in (1.0, 0.3))
    for one, other in zip(whole.means(), clipped.means(), strict=True):
        assert torch.equal(one * 0.3, other)
    assert whole.squares == clipped.squares


@pytest.mark.parametrize(("value", "problems"), [(math.nan, [1, 0]), (math.inf, [1, 0]), (-(2.0**47), [0, 1]), (-(2.0**46), [0, 0])])
@pytest.mark.parametrize("sends_sums", [False, True])
def test_a_gradient_that_cannot_be_added_up_is_counted(value: float, problems: list[int], sends_sums: bool) -> None:
    given = gradients([5, 3], 4, seed=0)
    given[2][1][1] = value
    assert Ranks(given, 2, 0, 1, sends_sums=sends_sums, scale=2.0**10).problems == problems


def test_buckets_leave_before_the_backward_pass_ends() -> None:
    """The last parameter's gradient is complete first. A parameter without a gradient counts as zero."""
    parameters = [nn.Parameter(torch.ones(4)) for _ in range(3)]
    sent: dict[int, list[int]] = {0: [], 1: []}

    class Noting(ThreadContext):
        def start_all_to_all(self, received: torch.Tensor, sent_now: torch.Tensor, *lengths: object) -> object:
            sent[self.rank].append(sent_now.numel())
            return super().start_all_to_all(received, sent_now, *lengths)

    def work(context: ThreadContext) -> torch.Tensor:
        own = [nn.Parameter(parameter.detach().clone()) for parameter in parameters]
        noting = Noting(context.rank, context.world_size, context.meeting)
        exact = ExactGradients(own, noting, 2, 4, kept_spans(3, [4] * 3, context.rank, 2), sends_sums=False)
        x = torch.ones(4)
        with exact.micro_batch(1.0, is_last=True):
            hidden = x * own[0]
            if context.rank == 0:
                hidden.register_hook(lambda gradient: order.append(len(sent[0])))
            (hidden * own[2]).sum().backward()
        return exact.finish()

    order: list[int] = []
    means = on_ranks(2, work)
    assert order == [1]
    assert sent == {0: [4] * 3, 1: [4] * 3}
    # Each part: two elements of parameter 2, of parameter 1, which has no gradient, and of parameter 0.
    assert [part.tolist() for part in means] == [[1, 1, 0, 0, 1, 1]] * 2
