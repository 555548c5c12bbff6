"""ParameterGather: brings the parameters that other ranks have stepped, while the next forward pass goes on.

At ZeRO 1 and 2 each rank steps its own part of the parameters, and every rank needs all of them. DeepSpeed gathers them before its step
returns. Here their owners send them in the order in which a forward pass needs them, and each part of the network waits for its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from tdformer.distributed.context import DistContext

MOST_RANKS = 64
"""Each owner sends by itself, one after the other. On more ranks these are too many small messages [our choice]."""


class Flat(NamedTuple):
    """Parameters that lie one after the other in one tensor. Rank r owns the r-th of its equal parts."""

    values: torch.Tensor
    parameters: Sequence[nn.Parameter]


class Piece(NamedTuple):
    """This is what one rank sends at once."""

    values: torch.Tensor
    owner: int
    unit: int
    """The first unit that needs it."""


class ParameterGather:
    """Gathers after a step. Use `start` after it, and `wait` before anything but a forward pass of the network looks at parameters.

    A unit is a part of the network that is run by calling it, such as a block. Units are numbered from 1 in the order in which they run.
    What lies in no unit counts as unit 0: it is sent first, and the network waits for it.
    """

    def __init__(
        self, flats: Sequence[Flat], network: nn.Module, units: Sequence[nn.Module], context: DistContext, piece_elements: int
    ) -> None:
        """piece_elements: the most elements of a piece."""
        self._context = context
        numbered = [*enumerate(units, start=1)]
        unit_of = {parameter: number for number, unit in reversed(numbered) for parameter in unit.parameters()}
        pieces = [piece for flat in flats for piece in _pieces(flat, unit_of, context.world_size, piece_elements)]
        self._pieces = sorted(pieces, key=lambda piece: piece.unit)
        self._on_the_way: deque[tuple[int, dist.Work]] = deque()
        self._hooks = [module.register_forward_pre_hook(partial(self._before, number)) for number, module in enumerate((network, *units))]

    def start(self) -> None:
        """Begin to send what this rank has stepped, and to receive what others have. Collective."""
        self.wait()
        self._on_the_way.extend((piece.unit, self._context.start_broadcast(piece.values, piece.owner)) for piece in self._pieces)

    def wait(self, last: int | None = None) -> None:
        """Wait for the parameters of all units, or of those up to number `last`. With CUDA only the device waits."""
        while self._on_the_way and (last is None or self._on_the_way[0][0] <= last):
            self._context.wait(self._on_the_way.popleft()[1])

    def close(self) -> None:
        """Wait, and let go of the network."""
        self.wait()
        for hook in self._hooks:
            hook.remove()

    def _before(self, number: int, module: nn.Module, arguments: object) -> None:
        self.wait(number)


def _pieces(flat: Flat, unit_of: dict[nn.Parameter, int], ranks: int, piece_elements: int) -> Iterator[Piece]:
    """Cut a flat tensor where the owner changes, where a part of the network begins that runs earlier than the one before, and by size."""
    address, size, of_a_rank = flat.values.data_ptr(), flat.values.element_size(), flat.values.numel() // ranks
    starts = [(parameter.data_ptr() - address) // size for parameter in flat.parameters]
    ends = [start + parameter.numel() for start, parameter in zip(starts, flat.parameters, strict=True)]
    units = [unit_of.get(parameter, 0) for parameter in flat.parameters]
    cuts = {0, *ends[-1:], *(rank * of_a_rank for rank in range(1, ranks) if rank * of_a_rank < max(ends, default=0))}
    cuts |= {start for start, (before, unit) in zip(starts[1:], pairwise(units), strict=True) if unit < before}
    for first, last in pairwise(sorted(cuts)):
        for start in range(first, last, piece_elements):
            end = min(start + piece_elements, last)
            inside = [unit for unit, own, own_end in zip(units, starts, ends, strict=True) if own < end and own_end > start]
            yield Piece(flat.values[start:end], start // of_a_rank, min(inside, default=0))
