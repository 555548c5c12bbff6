"""MeanExchange: brings mean gradients from the ranks that added them up to the ranks whose optimizers need them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from tdformer.distributed.context import DistContext
from tdformer.training.exact_gradients import Slot

Span = tuple[int, int]
"""Elements [start, end) of a parameter that a rank keeps."""


class Piece(NamedTuple):
    """Elements of one parameter that one rank sends to another."""

    parameter: int
    start: int
    """Where they begin in the sender's means."""
    length: int


class MeanExchange:
    """Exchanges the means that ExactGradients makes. ZeRO 3 needs none, since it keeps what it adds up; then nothing is sent."""

    def __init__(self, slots: Sequence[Slot], kept: Sequence[Span], context: DistContext) -> None:
        """kept: the elements of each parameter that this rank's optimizer steps. Collective."""
        self._context = context
        of_ranks: list[Sequence[Span]] = context.all_gather(kept)
        self._sent = [_pieces(slots, context.rank, of_receiver) for of_receiver in of_ranks]
        self._received = [_pieces(slots, sender, kept) for sender in range(context.world_size)]
        (self._is_needed,) = context.any(any(pieces for receiver, pieces in enumerate(self._sent) if receiver != context.rank))

    def __call__(self, means: torch.Tensor) -> torch.Tensor:
        """Return the means that this rank keeps, float32, one piece after the other. Collective."""
        sent = torch.cat([means[:0], *(means[piece.start :][: piece.length] for pieces in self._sent for piece in pieces)])
        if not self._is_needed:
            return sent
        lengths = [[sum(piece.length for piece in pieces) for pieces in side] for side in (self._received, self._sent)]
        received = sent.new_empty(sum(lengths[0]))
        self._context.wait(self._context.start_all_to_all(received, sent, *lengths))
        return received

    def by_parameter(self, received: torch.Tensor) -> dict[int, torch.Tensor]:
        """Return what this rank keeps of each parameter, flat. received: what the call returned."""
        pieces = [piece for pieces in self._received for piece in pieces]  # in the order of senders, which is that of elements
        found: dict[int, list[torch.Tensor]] = {}
        for piece, values in zip(pieces, received.split([piece.length for piece in pieces]), strict=True):
            found.setdefault(piece.parameter, []).append(values)
        return {parameter: values[0] if len(values) == 1 else torch.cat(values) for parameter, values in found.items()}


def _pieces(slots: Sequence[Slot], sender: int, kept: Sequence[Span]) -> list[Piece]:
    """Return what a sender has of what a receiver keeps."""
    pieces = []
    for slot in slots:
        begin = sender * slot.part
        start, end = max(begin, kept[slot.parameter][0]), min(begin + slot.part, slot.size, kept[slot.parameter][1])
        if start < end:
            pieces.append(Piece(slot.parameter, slot.start + start - begin, end - start))
    return pieces
