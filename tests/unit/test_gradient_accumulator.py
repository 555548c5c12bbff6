"""Sums of a global batch: the same bits however the micro-batches are spread over ranks and in whichever order they come."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tdformer.distributed.context import DistContext
from tdformer.distributed.launch_environment import free_port
from tdformer.training.gradient_accumulator import GradientAccumulator
from tdformer.training.telemetry.loss_spikes import SPIKE_WINDOW, LossSpikes


@pytest.fixture(scope="module")
def context() -> Iterator[DistContext]:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()), RANK="0", WORLD_SIZE="1")
    dist.init_process_group("gloo")
    yield DistContext(0, 1, torch.device("cpu"))
    dist.destroy_process_group()
    for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE"):
        del os.environ[name]


def micro_batches(model: nn.Module, inputs: list[torch.Tensor], context: DistContext) -> GradientAccumulator:
    total = GradientAccumulator(list(model.parameters()), list(model.buffers()), context)
    for x in inputs:
        with total.micro_batch():
            loss = model(x).square().mean()
            loss.backward()
        total.add_loss(loss)
    return total


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 3))


@settings(deadline=None, max_examples=30)
@given(st.permutations(range(12)), st.integers(1, 11), st.floats(-6, 6))
def test_the_order_of_micro_batches_and_their_split_over_ranks_change_no_bit(
    context: DistContext, order: list[int], cut: int, exponent: float
) -> None:
    """Two ranks are two sums added up. The inputs differ in size by up to 10**6."""
    generator = torch.Generator().manual_seed(1)
    inputs = [torch.randn(4, 5, generator=generator) * (10**exponent if n % 3 == 0 else 1) for n in range(12)]
    whole = micro_batches(small_model(), inputs, context)
    shuffled = [inputs[n] for n in order]
    one, other = (micro_batches(small_model(), part, context) for part in (shuffled[:cut], shuffled[cut:]))
    one.sums.add_(other.sums)
    for total in (whole, one):
        total.reduce(12)
    assert whole.loss_and_norm() == one.loss_and_norm()
    assert all(torch.equal(a.float(), b.float()) for a, b in zip(whole.gradients, one.gradients, strict=True))


def test_gradients_are_the_means_and_none_is_left_behind(context: DistContext) -> None:
    inputs = [torch.randn(4, 5) for _ in range(3)]
    model, reference = small_model(), small_model()
    total = micro_batches(model, inputs, context)
    total.reduce(3)
    for x in inputs:
        (reference(x).square().mean() / 3).backward()
    for gradient, parameter, expected in zip(total.gradients, model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(gradient.float(), expected.grad)
        assert not parameter.grad.any()


def test_a_loss_scale_leaves_no_trace(context: DistContext) -> None:
    model, reference = small_model(), small_model()
    x = torch.randn(4, 5)
    plain = micro_batches(reference, [x], context)
    scaled = GradientAccumulator(list(model.parameters()), list(model.buffers()), context)
    with scaled.micro_batch():
        loss = model(x).square().mean()
        (loss * 2.0**16).backward()
    scaled.add_loss(loss)
    plain.reduce(1)
    scaled.reduce(1, loss_scale=2.0**16)
    assert scaled.loss_and_norm() == plain.loss_and_norm()
    assert all(torch.equal(one, other) for one, other in zip(scaled.gradients, plain.gradients, strict=True))


def test_statistics_are_the_mean_of_what_each_micro_batch_alone_makes_of_them(context: DistContext) -> None:
    inputs = [torch.randn(4, 5) * scale for scale in (1.0, 3.0)]
    model = small_model()
    alone = []
    for x in inputs:
        one = small_model()
        one(x)
        alone.append(one[1])
    total = micro_batches(model, inputs, context)
    assert torch.equal(model[1].running_mean, torch.zeros(7))  # nothing yet: the global batch may still be discarded
    total.reduce(2)
    total.keep_statistics()
    torch.testing.assert_close(model[1].running_mean, (alone[0].running_mean + alone[1].running_mean) / 2)
    torch.testing.assert_close(model[1].running_var, (alone[0].running_var + alone[1].running_var) / 2)
    assert model[1].num_batches_tracked == 1


def test_a_gradient_that_is_not_finite_shows_in_the_norm(context: DistContext) -> None:
    total = micro_batches(small_model(), [torch.randn(4, 5), torch.full((4, 5), float("inf"))], context)
    total.reduce(2)
    assert not math.isfinite(total.loss_and_norm()[1])
    total.clear()
    assert total.loss_and_norm() == (0, 0)


def test_clipping_bounds_the_norm_and_leaves_smaller_ones_alone(context: DistContext) -> None:
    total = micro_batches(small_model(), [torch.randn(4, 5)], context)
    total.reduce(1)
    norm = total.loss_and_norm()[1]
    total.clip(2 * norm, norm)
    assert total.loss_and_norm()[1] == norm
    total.clip(norm / 4, norm)
    assert total.loss_and_norm()[1] == pytest.approx(norm / 4)


def test_a_loss_out_of_line_is_a_spike_and_a_noisy_one_is_not() -> None:
    spikes, generator = LossSpikes(), torch.Generator().manual_seed(0)
    noisy = [2 + 0.1 * float(torch.randn((), generator=generator)) for _ in range(3 * SPIKE_WINDOW)]
    assert not any(spikes.add(loss) for loss in noisy)
    assert spikes.add(4.0)
    assert not spikes.add(1.0)
