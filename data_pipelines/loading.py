"""The one place that makes loaders: training batches from any step on, evaluation batches counted once."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Generator, Iterable
from functools import partial
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext
from typing import Any

import torch
from torch.utils.data import DataLoader

from data_pipelines.augment import eval_transform, train_transform
from data_pipelines.batch import Batch
from data_pipelines.config import DataConfig
from data_pipelines.errors import DataError, UserError
from data_pipelines.order import TrainOrder, evaluation_indices
from data_pipelines.shards import ShardSet
from data_pipelines.wds_pipeline import WdsDataset

STOP_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}


def train_batches(config: DataConfig, shards: ShardSet, order: TrainOrder, first_step: int, last_step: int) -> Generator[Batch, None, None]:
    """This rank's micro-batches of the global steps first_step … last_step - 1, loaded ahead by worker processes.

    Raises DataError, when its batch is due, for a sample that cannot be read.
    """
    dataset = WdsDataset(shards, train_transform(config), order.seed)
    return _load(dataset, order.from_step(first_step, last_step), config.workers)


def evaluation_batches(config: DataConfig, shards: ShardSet, *, batch: int, rank: int, world: int) -> Generator[Batch, None, None]:
    """This rank's share of a data set: over all ranks each sample once. All ranks get equally many batches."""
    indices = evaluation_indices(len(shards), rank, world)
    places = [[(0, int(sample)) for sample in indices[start : start + batch]] for start in range(0, len(indices), batch)]
    return _load(WdsDataset(shards, eval_transform(config), seed=0), places, min(config.workers, len(places)))


def _load(dataset: WdsDataset, places: Iterable[list[tuple[int, int]]], workers: int) -> Generator[Batch, None, None]:
    """Closing the generator ends its worker processes."""
    loader = DataLoader(
        dataset,
        batch_sampler=places,
        num_workers=workers,
        collate_fn=_unchanged,
        pin_memory=torch.cuda.is_available(),
        multiprocessing_context=_worker_context() if workers else None,
        worker_init_fn=partial(_prepare_worker, os.getpid()),
    )
    try:
        for batch in loader:
            if isinstance(batch, DataError):
                raise batch
            yield batch
    except RuntimeError as error:
        if "exited unexpectedly" not in str(error) and "killed by signal" not in str(error):
            raise
        raise UserError("a loader process was killed, most likely because memory ran out; lower data.workers and go on.") from error


def _worker_context() -> BaseContext:
    """Workers are forked from a helper process that has imported what they need.

    Not from the training process: by the time that loaders start it has threads (gloo, MLflow) whose locks a fork would copy.
    """
    atexit.register(_kill_workers)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["data_pipelines.wds_pipeline"])
    # A terminal's Ctrl-C and a scheduler's signals reach every process of the run. Stopping is for the training process, which
    # then ends its workers: its helpers start with these signals blocked, and hand that on to the workers that they fork.
    for start_helper in (resource_tracker.ensure_running, forkserver.ensure_running):
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            start_helper()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    return context


def _kill_workers() -> None:
    """After an exception loaders may not have been closed. multiprocessing would then wait for workers that block its SIGTERM."""
    for child in multiprocessing.active_children():
        child.kill()


def _unchanged(batch: Any) -> Any:
    """The data set makes whole batches; there is nothing left to collate."""
    return batch


def _prepare_worker(owner: int, worker: int) -> None:
    """A worker computes on one core, and does not outlive the training process."""
    threading.Thread(target=_end_with, args=(owner,), daemon=True).start()
    torch.set_num_threads(1)


def _end_with(owner: int) -> None:
    """End this worker soon after the training process has gone, however it went.

    torch's own watch looks at the parent process, which for a forkserver's child never goes.
    """
    while True:
        try:
            os.kill(owner, 0)
        except ProcessLookupError:
            os._exit(1)
        time.sleep(1.0)
