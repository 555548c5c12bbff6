"""Ranks as threads of one process, for tests of what is computed from the collectives, over many numbers of ranks.

Other tests use the real collectives, between processes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch

from tdformer.distributed.context import DistContext

Result = TypeVar("Result")
SPOILT = -12345


class _Meeting:
    """Threads meet here: they put down what they send, and wait for each other."""

    def __init__(self, ranks: int) -> None:
        self.barrier = threading.Barrier(ranks, timeout=60)
        self.values: list[Any] = [None] * ranks

    def all_gather(self, rank: int, value: Any) -> list[Any]:
        self.values[rank] = value
        self.barrier.wait()
        values = list(self.values)
        self.barrier.wait()
        return values


class _Work:
    """This collective delivers when it is waited for. Until then it spoils what it delivers to."""

    def __init__(self, received: torch.Tensor, values: torch.Tensor) -> None:
        self.received, self.values = received, values
        received.fill_(SPOILT)

    def wait(self) -> None:
        self.received.copy_(self.values)


class ThreadContext(DistContext):
    """This is the context of one thread."""

    def __init__(self, rank: int, world_size: int, meeting: _Meeting) -> None:
        super().__init__(rank, world_size, torch.device("cpu"))
        object.__setattr__(self, "meeting", meeting)

    def all_gather(self, value: Any) -> list[Any]:
        return self.meeting.all_gather(self.rank, value)

    def any(self, *flags: bool) -> tuple[bool, ...]:
        return tuple(map(any, zip(*self.all_gather(flags), strict=True)))

    def all_reduce_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.copy_(sum(self.all_gather(tensor.clone())))

    def start_all_to_all(
        self, received: torch.Tensor, sent: torch.Tensor, received_lengths: list[int] | None = None, sent_lengths: list[int] | None = None
    ) -> Any:
        parts = list(sent.clone()) if sent_lengths is None else sent.clone().split(sent_lengths)
        for_this = [parts_of_rank[self.rank] for parts_of_rank in self.all_gather(parts)]
        return _Work(received, torch.stack(for_this) if received_lengths is None else torch.cat(for_this))

    def start_broadcast(self, tensor: torch.Tensor, source: int) -> Any:
        values = self.all_gather(tensor.clone())[source]
        return _Work(tensor.clone() if self.rank == source else tensor, values)


def on_ranks(ranks: int, action: Callable[[ThreadContext], Result]) -> list[Result]:
    """Run an action on every rank at once, and return what it returned."""
    meeting = _Meeting(ranks)
    with ThreadPoolExecutor(ranks) as pool:
        return list(pool.map(lambda rank: action(ThreadContext(rank, ranks, meeting)), range(ranks)))
