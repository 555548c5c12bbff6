"""MeanExchange: brings mean gradients from the ranks that added them up to the ranks whose optimizers need them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist

from tdformer.distributed.context import DistContext
from tdformer.training.reduction.gradient_layout import Slot, Span


class Piece(NamedTuple):
    """A piece is what one rank sends to another of one parameter."""

    parameter: int
    start: int
    """The piece begins at this element of the sender's means."""
    length: int


class MeanExchange:
    """Exchanges the means of one bucket. At ZeRO 3 every rank keeps what it adds up; then nothing is sent."""

    def __init__(self, slots: Sequence[Slot], kept: Sequence[Sequence[Span]], context: DistContext) -> None:
        """slots: those of the bucket. kept: by rank, the elements of each parameter that the rank's optimizer steps."""
        self._context = context
        self._sent = [_pieces(slots, context.rank, of_receiver) for of_receiver in kept]
        self._received = [_pieces(slots, sender, kept[context.rank]) for sender in range(context.world_size)]
        own = [[slot.of_rank(rank) for slot in slots] for rank in range(context.world_size)]
        self._is_needed = own != [[of_rank[slot.parameter] for slot in slots] for of_rank in kept]
        self._values = torch.empty(0)
        self._work: dist.Work | None = None

    def start(self, means: torch.Tensor) -> None:
        """Begin to exchange. means: this rank's, float32, in the order of slots. Collective if it is needed."""
        sent = torch.cat([means[piece.start :][: piece.length] for pieces in self._sent for piece in pieces] or [means[:0]])
        if not self._is_needed:
            self._values = sent
            return
        lengths = [[sum(piece.length for piece in pieces) for pieces in side] for side in (self._received, self._sent)]
        self._values = sent.new_empty(sum(lengths[0]))
        self._work = self._context.start_all_to_all(self._values, sent, *lengths)

    def finish(self) -> torch.Tensor:
        """Wait for the means that this rank keeps, and return them, float32, one piece after the other."""
        if self._work is not None:
            self._context.wait(self._work)
            self._work = None
        return self._values

    def by_parameter(self) -> dict[int, torch.Tensor]:
        """Return what `finish` returned by parameter, flat."""
        pieces = [piece for pieces in self._received for piece in pieces]  # in the order of senders, which is that of elements
        found: dict[int, list[torch.Tensor]] = {}
        for piece, values in zip(pieces, self._values.split([piece.length for piece in pieces]), strict=True):
            found.setdefault(piece.parameter, []).append(values)
        return {parameter: values[0] if len(values) == 1 else torch.cat(values) for parameter, values in found.items()}

    def clear(self) -> None:
        self._values = torch.empty(0)


def _pieces(slots: Sequence[Slot], sender: int, kept: Sequence[Span]) -> list[Piece]:
    """Return what a sender has of what a receiver keeps."""
    pieces = []
    for slot in slots:
        begin, stop = slot.of_rank(sender)
        start, end = max(begin, kept[slot.parameter][0]), min(stop, kept[slot.parameter][1])
        if start < end:
            pieces.append(Piece(slot.parameter, slot.start - slots[0].start + start - begin, end - start))
    return pieces
