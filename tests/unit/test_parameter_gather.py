"""ParameterGather on ranks that are threads: what a forward pass finds, and what is still on its way."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tdformer.training.parameter_gather import Flat, ParameterGather
from tests.unit.thread_ranks import SPOILT, ThreadContext, on_ranks

NEW = 7.0


class Unit(nn.Module):
    """Notes what its parameters are when it is run, before another one runs."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(torch.zeros(size)) for size in sizes)
        self.found: list[torch.Tensor] = []

    def forward(self) -> None:
        self.found = [weight.detach().clone() for weight in self.weights]


class Network(nn.Module):
    def __init__(self, units: list[Unit], outside: Unit) -> None:
        super().__init__()
        self.outside, self.units = outside, nn.ModuleList(units)

    def forward(self) -> None:
        self.outside.forward()  # not called as a module: no unit of its own
        for unit in self.units:
            unit()


def flats_of(network: nn.Module, ranks: int, groups: int) -> list[Flat]:
    """Put every `groups`-th parameter into one flat tensor, padded as DeepSpeed does."""
    parameters, flats = list(network.parameters()), []
    for group in (parameters[number::groups] for number in range(groups)):
        elements = sum(parameter.numel() for parameter in group)
        values, start = torch.zeros(-(-max(elements, 1) // ranks) * ranks), 0
        for parameter in group:
            parameter.data = values[start : start + parameter.numel()].view(parameter.shape)
            start += parameter.numel()
        flats.append(Flat(values, group))
    return flats


def step(flats: list[Flat], context: ThreadContext) -> None:
    """Change what this rank owns, as its optimizer does."""
    for flat in flats:
        length = flat.values.numel() // context.world_size
        flat.values[context.rank * length :][:length] = NEW


@settings(max_examples=30)
@given(
    st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=3), min_size=1, max_size=4),
    st.lists(st.integers(1, 9), min_size=1, max_size=3),
    st.integers(1, 4),
    st.integers(1, 2),
    st.integers(1, 40),
)
def test_each_part_of_a_network_finds_its_new_parameters(units: list, outside: list, ranks: int, groups: int, piece: int) -> None:
    def pass_of(context: ThreadContext) -> bool:
        network = Network([Unit(sizes) for sizes in units], Unit(outside))
        flats = flats_of(network, ranks, groups)
        gather = ParameterGather(flats, network, list(network.units), context, piece)
        for _ in range(2):
            for flat in flats:
                flat.values.zero_()
            step(flats, context)
            gather.start()
            network()
            found = [tensor for unit in (network.outside, *network.units) for tensor in unit.found]
            assert all(bool((tensor == NEW).all()) for tensor in found), found
        gather.close()
        network()
        return True

    assert on_ranks(ranks, pass_of) == [True] * ranks


def test_later_parts_are_still_on_their_way_when_the_first_ones_run() -> None:
    def pass_of(context: ThreadContext) -> list[bool]:
        network = Network([Unit([8]), Unit([8])], Unit([8]))
        flats = flats_of(network, 2, 1)
        gather = ParameterGather(flats, network, list(network.units), context, 4)
        step(flats, context)
        gather.start()
        seen = []
        for module in (network.units[0], network.units[1]):
            module()
            seen.append([SPOILT in weight for weight in (network.outside.weights[0], *(unit.weights[0] for unit in network.units))])
        gather.wait()
        return seen

    first, second = on_ranks(2, pass_of)
    assert first == [[False, False, True], [False, False, False]], "rank 0 owns the first half of the parameters"
    assert second[1] == [False, False, False]


def test_whoever_looks_at_parameters_waits() -> None:
    def pass_of(context: ThreadContext) -> bool:
        network = Network([Unit([5]), Unit([3])], Unit([2]))
        flats = flats_of(network, 2, 1)
        gather = ParameterGather(flats, network, list(network.units), context, 4)
        step(flats, context)
        gather.start()
        gather.wait()
        return all(bool((parameter == NEW).all()) for parameter in network.parameters())

    assert on_ranks(2, pass_of) == [True, True]
