"""The moving average of a network."""

from __future__ import annotations

import torch
from torch import nn

from tdformer.training.ema import MovingAverage


def tensors(network: nn.Module) -> list[torch.Tensor]:
    return [*network.parameters(), *network.buffers()]


def test_weights_and_statistics_are_averaged_and_counters_copied() -> None:
    network = nn.BatchNorm1d(5)
    average, expected = MovingAverage(tensors(network), 0.9), [tensor.detach().clone().double() for tensor in tensors(network)]
    for step in range(1, 4):
        for tensor in tensors(network):
            tensor.data.copy_(step * torch.ones_like(tensor))
        average.update()
        expected = [
            0.9 * old + 0.1 * step if tensor.is_floating_point() else tensor.double()
            for old, tensor in zip(expected, tensors(network), strict=True)
        ]
    average.exchange()
    for tensor, own in zip(tensors(network), expected, strict=True):
        torch.testing.assert_close(tensor.double(), own, rtol=1e-6, atol=0)


def test_exchanged_twice_all_is_as_before() -> None:
    network = nn.BatchNorm1d(5)
    average = MovingAverage(tensors(network), 0.5)
    nn.init.normal_(network.weight)
    before = [tensor.detach().clone() for tensor in tensors(network)]
    average.update()
    average.exchange()
    assert not torch.equal(network.weight, before[0])
    average.exchange()
    assert all(torch.equal(tensor, own) for tensor, own in zip(tensors(network), before, strict=True))


def test_an_elements_average_does_not_depend_on_where_it_lies() -> None:
    """Vectorised kernels end in other instructions than they begin with; a partition of ZeRO ends elsewhere."""
    values, start = torch.randn(1003), torch.randn(1003)
    whole, parts = start.clone(), list(start.clone().split(37))
    averages = MovingAverage([whole], 0.9998), MovingAverage(parts, 0.9998)
    whole.copy_(values)
    for part, value in zip(parts, values.split(37), strict=True):
        part.copy_(value)
    for average in averages:
        average.update()
        average.exchange()
    assert torch.equal(whole, torch.cat(parts))
