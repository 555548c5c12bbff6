"""DistContext: which rank this process is, and how all ranks agree.

A run has one process per GPU, or any number on CPUs. `tdformer train --processes`, torchrun or srun start them; a run may also be one
process alone.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from data_pipelines.errors import UnavailableError, UserError
from data_pipelines.storage.patience import NO_PATIENCE, Patience, patiently
from tdformer.distributed.launch_environment import gpu_index, launcher_variables
from tdformer.distributed.watchdog.client import connect
from tdformer.distributed.watchdog.diagnosis import PeerLostError
from tdformer.distributed.watchdog.server import listen
from tdformer.distributed.watchdog.watchdog import Watchdog

Result = TypeVar("Result")

SECONDS_FOR_FIRST_TO_SPEAK = 2.0
"""Seconds by which the other ranks leave after rank 0, which prints the error that all have. srun and torchrun kill all ranks when the
first one leaves."""
COLLECTIVE_TIMEOUT = timedelta(hours=4)
"""Time limit of torch's collectives. It is longer than the watchdog's, which can name the rank, and counts where the watchdog is off."""
JOIN_TIMEOUT = timedelta(minutes=10)
SECONDS_TO_DIAGNOSE = 5.0
"""Seconds after a network error within which the watchdog finds out which rank failed."""


@dataclass(frozen=True)
class DistContext:
    """Says which rank this process is, and offers the collectives of the run. Every collective counts as progress for the watchdog."""

    rank: int
    world_size: int
    device: torch.device
    watchdog: Watchdog = field(default_factory=Watchdog, repr=False, compare=False)

    @property
    def is_rank0(self) -> bool:
        return self.rank == 0

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Return for each flag whether any rank has set it. It sends a few bytes between CPUs, which is cheap enough for every step."""
        tensor = torch.tensor(flags, dtype=torch.int32)
        with self.watchdog.progress.collective():
            dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return tuple(map(bool, tensor.tolist()))

    def all_reduce_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum a tensor element-wise over the ranks, in place, on its device."""
        with self.watchdog.progress.collective():
            dist.all_reduce(tensor)
        return tensor

    def start_all_to_all(
        self, received: torch.Tensor, sent: torch.Tensor, received_lengths: list[int] | None = None, sent_lengths: list[int] | None = None
    ) -> dist.Work:
        """Begin to send a part of `sent` to each rank, and to receive one from each. Give what it returns to `wait`.

        Without lengths, row r of `sent` goes to rank r, and row s of `received` comes from rank s. With lengths, both are flat.
        """
        work = dist.all_to_all_single(received, sent, received_lengths, sent_lengths, async_op=True)
        assert work is not None  # it is for a process outside the group
        return work

    def start_broadcast(self, tensor: torch.Tensor, source: int) -> dist.Work:
        """Begin to copy a tensor from a rank to all others, in place. Give what it returns to `wait`."""
        work = dist.broadcast(tensor, source, async_op=True)
        assert work is not None  # it is for a process outside the group
        return work

    def wait(self, work: dist.Work) -> None:
        """Wait for a collective that was begun. With CUDA only the device waits, which is no progress of the host."""
        if self.device.type == "cuda":
            work.wait()
            return
        with self.watchdog.progress.collective():
            work.wait()

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value on all ranks."""
        box = [value]
        with self.watchdog.progress.collective():
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def all_gather(self, value: Any) -> list[Any]:
        """Return every rank's value, in the order of ranks, on all ranks."""
        values: list[Any] = [None] * self.world_size
        with self.watchdog.progress.collective():
            dist.all_gather_object(values, value)
        return values

    def gather_to_rank0(self, value: Any) -> list[Any]:
        """Return every rank's value, in the order of ranks, on rank 0, and an empty list on the others."""
        values: list[Any] | None = [None] * self.world_size if self.is_rank0 else None
        with self.watchdog.progress.collective():
            dist.gather_object(value, values, dst=0)
        return values or []

    def on_all_ranks(self, action: Callable[[], Result], patience: Patience = NO_PATIENCE) -> Result:
        """Run an action that may raise UserError. If it does so on any rank, it is raised on all ranks, with the same words.

        patience: how long a rank tries again what cannot be read now.
        """
        result, _ = self.on_all_ranks_unless(action, lambda: False, patience)
        return result

    def on_all_ranks_unless(
        self, action: Callable[[], Result], should_stop: Callable[[], bool], patience: Patience = NO_PATIENCE
    ) -> tuple[Result, bool]:
        """Run an action as on_all_ranks does, and tell whether any rank should stop after it. One collective serves both."""
        try:
            result, failure = patiently(action, patience), None
        except UserError as error:
            result, failure = None, error
        failed, must_stop = self.any(failure is not None, should_stop())
        if failed:
            self._raise_on_all_ranks(failure)
        return result, must_stop  # type: ignore[return-value]  # result is only None if failure was raised above

    def raise_on_all_ranks(self, failure: UserError | None) -> None:
        """Raise on all ranks the failure of any rank. Return if no rank has one.

        It is an UnavailableError if any rank has one, so that the state is saved, and a UserError otherwise.
        """
        (failed,) = self.any(failure is not None)
        if failed:
            self._raise_on_all_ranks(failure)

    def _raise_on_all_ranks(self, failure: UserError | None) -> None:
        failures = self.all_gather((isinstance(failure, UnavailableError), str(failure)) if failure else None)
        passing = any(failed[0] for failed in failures if failed)
        rank, text = next((rank, failed[1]) for rank, failed in enumerate(failures) if failed and failed[0] == passing)
        everywhere = len(set(failures)) == 1
        kind = UnavailableError if passing else UserError
        raise kind(text if everywhere else f"{text} (on rank {rank} of {self.world_size})")


@contextmanager
def init_distributed() -> Iterator[DistContext]:
    """Join the other processes, and leave them at the end of the context.

    Collectives on CPU tensors use gloo, those on CUDA tensors NCCL. The environment variables that torch and DeepSpeed read are set. Raises
    PeerLostError if another rank is lost.
    """
    os.environ.update(launcher_variables(os.environ))
    cuda = torch.cuda.is_available()
    if not cuda:
        os.environ["DS_ACCELERATOR"] = "cpu"
    place = torch.device("cuda", gpu_index(os.environ, torch.cuda.device_count())) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(place)
    _join("cpu:gloo,cuda:nccl" if cuda else "gloo")
    watchdog = Watchdog(dist.get_rank())
    context = DistContext(dist.get_rank(), dist.get_world_size(), place, watchdog)
    try:
        _start(watchdog, context)
        yield context
        watchdog.leave()
    except UserError as error:
        watchdog.leave(str(error), is_shared=True)
        if not context.is_rank0:
            # As soon as rank 0 has left srun ends the others: killed by that, their exit code would hide its own.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(SECONDS_FOR_FIRST_TO_SPEAK)
        raise
    except BaseException as error:
        if watchdog.explain_lost_peer(SECONDS_TO_DIAGNOSE if _is_of_network(error) else 0):
            watchdog.leave()
            raise PeerLostError from None
        watchdog.leave(f"{type(error).__name__}: {error}".partition("\n")[0])
        raise
    finally:
        dist.destroy_process_group()


def _join(backend: str) -> None:
    """Join torch's process group. Raises PeerLostError if the other ranks do not come. A process that is alone opens no port for it."""
    rank, world_size = os.environ["RANK"], os.environ["WORLD_SIZE"]
    if world_size == "1":
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=COLLECTIVE_TIMEOUT)
        return
    try:
        store, number, count = next(dist.rendezvous("env://", timeout=JOIN_TIMEOUT))
        dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=COLLECTIVE_TIMEOUT)
    except dist.DistError as error:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        minutes = JOIN_TIMEOUT.total_seconds() / 60
        reason = str(error).partition("\n")[0]
        raise PeerLostError(
            f"rank {rank} did not meet the other {int(world_size) - 1} at {place} within {minutes:g} minutes; look at the ranks that "
            f"did not start, and at MASTER_ADDR and MASTER_PORT ({reason})."
        ) from None


def _start(watchdog: Watchdog, context: DistContext) -> None:
    own, address = context.on_all_ranks(lambda: listen(os.environ) if context.is_rank0 else (None, None))
    server = context.broadcast(address)
    watchdog.start(context.on_all_ranks(lambda: own or connect(context.rank, server)), server)


def _is_of_network(error: BaseException) -> bool:
    """Tell whether torch.distributed may have raised this because another rank is gone. gloo raises plain RuntimeErrors."""
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in ("gloo", "NCCL", "onnection", "peer"))
