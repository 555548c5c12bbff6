"""Means of BatchNorm statistics and losses over a global batch."""

from __future__ import annotations

import math
from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tdformer.training.reduction.batch_statistics import BatchStatistics
from tdformer.training.telemetry.loss_spikes import SPIKE_WINDOW, LossSpikes
from tests.unit.thread_ranks import ThreadContext, on_ranks


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 3))


def reduced(inputs: list[torch.Tensor], ranks: int = 1) -> tuple[float, dict[str, torch.Tensor]]:
    """Run the micro-batches, spread over ranks. Return the loss, and the statistics that the first rank keeps."""
    first = small_model()

    def work(context: ThreadContext) -> tuple[float, dict[str, torch.Tensor]]:
        model = deepcopy(first)
        statistics = BatchStatistics(list(model.buffers()), context, len(inputs))
        for x in inputs[context.rank :: ranks]:
            with statistics.micro_batch():
                loss = model(x).square().mean()
            statistics.add_loss(loss)
            assert torch.equal(model[1].running_mean, torch.zeros(7))  # nothing yet: the global batch may still be discarded
        statistics.reduce()
        statistics.keep()
        return statistics.loss(statistics.result.tolist()), dict(model[1].named_buffers())

    return on_ranks(ranks, work)[0]


@settings(deadline=None, max_examples=30)
@given(st.permutations(range(6)), st.integers(1, 4), st.floats(-6, 6))
def test_the_order_of_micro_batches_and_their_split_over_ranks_change_no_bit(order: list[int], ranks: int, exponent: float) -> None:
    generator = torch.Generator().manual_seed(1)
    inputs = [torch.randn(4, 5, generator=generator) * (10**exponent if n % 3 == 0 else 1) for n in range(6)]
    loss, whole = reduced(inputs)
    other_loss, shuffled = reduced([inputs[n] for n in order], ranks)
    assert loss == other_loss
    assert all(torch.equal(tensor, shuffled[name]) for name, tensor in whole.items())


def test_statistics_are_the_mean_of_what_each_micro_batch_alone_makes_of_them() -> None:
    inputs = [torch.randn(4, 5) * scale for scale in (1.0, 3.0)]
    alone = [reduced([x]) for x in inputs]
    loss, both = reduced(inputs)
    assert loss == pytest.approx((alone[0][0] + alone[1][0]) / 2, rel=1e-7)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(both[name], (alone[0][1][name] + alone[1][1][name]) / 2)
    assert both["num_batches_tracked"] == 1


@pytest.mark.parametrize("value", [math.inf, math.nan, 1e38])
def test_a_loss_or_statistic_that_cannot_be_added_up_makes_the_loss_nan(value: float) -> None:
    assert math.isnan(reduced([torch.randn(4, 5), torch.full((4, 5), value)], ranks=2)[0])


def test_a_loss_out_of_line_is_a_spike_and_a_noisy_one_is_not() -> None:
    spikes, generator = LossSpikes(), torch.Generator().manual_seed(0)
    noisy = [2 + 0.1 * float(torch.randn((), generator=generator)) for _ in range(3 * SPIKE_WINDOW)]
    assert not any(spikes.add(loss) for loss in noisy)
    assert spikes.add(4.0)
    assert not spikes.add(1.0)
