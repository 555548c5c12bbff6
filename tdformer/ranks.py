"""The processes of a run: who am I, how many are we, and how do we agree.

One process per GPU (or several on a CPU), started by `tdformer train --processes`, torchrun, srun, or alone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from data_pipelines.errors import UserError
from tdformer.launchers import gpu_index, launcher_variables

Result = TypeVar("Result")

SECONDS_FOR_FIRST_TO_SPEAK = 2.0
"""Rank 0 tells the error that all ranks have. The others leave after it: srun and torchrun kill all when the first one leaves."""


@dataclass(frozen=True)
class Ranks:
    """This process's place among all processes of the run."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def largest(self, value: int) -> int:
        """The largest of all ranks' values. A few bytes over the CPU network: cheap enough for every step."""
        tensor = torch.tensor(value)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return int(tensor)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Element-wise sum over the ranks, in place, on the tensor's device."""
        dist.all_reduce(tensor)
        return tensor

    def from_first(self, value: Any) -> Any:
        """Rank 0's value, on all ranks."""
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in the order of ranks, on all ranks."""
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def to_first(self, value: Any) -> list[Any]:
        """Every rank's value, in the order of ranks, on rank 0; an empty list on the others."""
        values: list[Any] | None = [None] * self.world if self.is_first else None
        dist.gather_object(value, values, dst=0)
        return values or []

    def together(self, action: Callable[[], Result]) -> Result:
        """Do something that can fail for a user's reason on some ranks; if it does on any, it fails on all, with the same words."""
        try:
            result, failure = action(), None
        except UserError as error:
            result, failure = None, error
        self.raise_together(failure)
        return result  # type: ignore[return-value]  # only None if failure was raised above

    def raise_together(self, failure: UserError | None) -> None:
        """Raise on all ranks what any rank brings; return if none brings anything."""
        if not self.largest(int(failure is not None)):
            return
        failures = self.gather(str(failure) if failure else None)
        rank, text = next((rank, text) for rank, text in enumerate(failures) if text)
        everywhere = len(set(failures)) == 1
        raise UserError(text if everywhere else f"{text} (on rank {rank} of {self.world})")


@contextmanager
def joined() -> Iterator[Ranks]:
    """Join the other processes; leave them at the end.

    CPU tensors travel over gloo, CUDA tensors over NCCL. Sets the variables that torch and DeepSpeed read.
    """
    os.environ.update(launcher_variables(os.environ))
    cuda = torch.cuda.is_available()
    if not cuda:
        os.environ["DS_ACCELERATOR"] = "cpu"
    place = torch.device("cuda", gpu_index(os.environ, torch.cuda.device_count())) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(place)
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    ranks = Ranks(dist.get_rank(), dist.get_world_size(), place)
    try:
        yield ranks
    except UserError:
        if not ranks.is_first:
            time.sleep(SECONDS_FOR_FIRST_TO_SPEAK)
        raise
    finally:
        dist.destroy_process_group()
