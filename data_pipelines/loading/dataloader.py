"""Makes all loaders: training batches from any step on, and evaluation batches that count each sample once."""

from __future__ import annotations

import errno
import os
from collections.abc import Generator, Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from data_pipelines.config import DataConfig
from data_pipelines.errors import UnavailableError
from data_pipelines.loading.batch import Batch
from data_pipelines.loading.dataset import DataSet
from data_pipelines.loading.event_transform import EventTransform
from data_pipelines.loading.loader_workers import initialise_worker, worker_context
from data_pipelines.loading.micro_batches import MicroBatchDataset, Unread
from data_pipelines.loading.normalisation import Normalisation
from data_pipelines.loading.sample_order import Shuffle
from data_pipelines.loading.sampler import TrainSampler, evaluation_samples
from data_pipelines.loading.transforms import Transform, eval_transform, train_transform
from data_pipelines.storage.passing_trouble import reading, unavailable
from data_pipelines.storage.patience import NO_PATIENCE, Patience, patiently

KILLED = (
    "a loader process was killed, most likely because memory ran out, or because a file that it maps cannot be read now; lower "
    "data.workers, and the same command goes on."
)


def train_sampler(
    config: DataConfig, data: DataSet, seed: int, *, global_batch: int, micro_batch: int, rank: int, world_size: int
) -> TrainSampler:
    """Make the sampler of one rank. global_batch and micro_batch: samples per optimizer step and per forward pass."""
    window = config.shuffle_window if config.shuffle == "blocks" else None
    shuffle = Shuffle(seed, tuple(data.manifest.blocks), window)
    return TrainSampler(shuffle, global_batch, micro_batch, rank, world_size, config.augment.repeats)


def check_transforms(config: DataConfig, data: DataSet) -> None:
    """Raises UserError if the configuration asks for a step that this kind of data, or the installed packages, do not have."""
    _transform(config, data, training=True)
    _transform(config, data, training=False)


def _transform(config: DataConfig, data: DataSet, *, training: bool) -> Transform:
    if data.manifest.kind == "events":
        return EventTransform(config, training=training)
    return train_transform(config) if training else eval_transform(config)


def train_batches(
    config: DataConfig, data: DataSet, sampler: TrainSampler, first_step: int, last_step: int, patience: Patience = NO_PATIENCE
) -> Generator[Batch, None, None]:
    """Yield this rank's micro-batches of the global steps first_step … last_step - 1. Worker processes load them ahead.

    patience: how long a batch that cannot be read now is waited for. The order of batches and their content stay the same.
    Raises DataError for a damaged sample, when its batch is due, unless the configuration says to skip it. Raises UnavailableError,
    whatever the configuration says, for a sample that cannot be read.
    """
    skip = config.on_bad_sample == "skip"
    batches = MicroBatchDataset(
        data, _transform(config, data, training=True), _normalisation(config), sampler.shuffle.seed, replace_bad=skip
    )
    return _load(batches, sampler.iterate_steps(first_step, last_step), config.workers, patience)


def evaluation_batches(
    config: DataConfig,
    data: DataSet,
    *,
    batch: int,
    rank: int,
    world_size: int,
    chosen: np.ndarray | None = None,
    patience: Patience = NO_PATIENCE,
) -> Generator[Batch, None, None]:
    """Yield this rank's share of a data set. All ranks together take each sample once, and each rank gets equally many batches.

    batch: samples per batch. chosen: the numbers of the samples, in storage order, that all ranks take together; None: all. Raises
    DataError or UnavailableError, as train_batches does, for a sample that cannot be read.
    """
    samples = evaluation_samples(len(data), rank, world_size, chosen).tolist()
    requests = [[(0, sample) for sample in samples[start : start + batch]] for start in range(0, len(samples), batch)]
    batches = MicroBatchDataset(data, _transform(config, data, training=False), _normalisation(config), seed=0, replace_bad=False)
    return _load(batches, requests, min(config.workers, len(requests)), patience)


def _normalisation(config: DataConfig) -> Normalisation:
    return Normalisation(config.mean, config.std)


def _load(
    dataset: MicroBatchDataset, requests: Iterable[list[tuple[int, int]]], workers: int, patience: Patience
) -> Generator[Batch, None, None]:
    """Load one batch per request. Closing the generator ends its worker processes."""
    loader = DataLoader(
        dataset,
        batch_sampler=requests,
        num_workers=workers,
        collate_fn=_unchanged,
        pin_memory=torch.cuda.is_available(),
        multiprocessing_context=worker_context() if workers else None,
        worker_init_fn=partial(initialise_worker, os.getpid()),
    )
    try:
        with reading("the loader processes", was_there=True):
            for batch in loader:
                yield _load_again(dataset, batch, patience) if isinstance(batch, Unread) else batch
    except (RuntimeError, EOFError) as error:
        raise _explain_loader(error) from error


def _explain_loader(error: RuntimeError | EOFError) -> Exception:
    """Say in a sentence what torch and multiprocessing tell of loader processes. Returns a fault of the program unchanged."""
    text = str(error)
    if "ancdata" in text or "Too many open files" in text:
        return unavailable("a batch of the loader processes", OSError(errno.EMFILE, ""))
    if isinstance(error, EOFError) or any(word in text for word in ("exited unexpectedly", "killed by signal", "Bus error")):
        return UnavailableError(KILLED)
    return error


def _load_again(dataset: MicroBatchDataset, unread: Unread, patience: Patience) -> Batch:
    """Load a batch in this process that a worker process could not read, with patience. Raises its error if it is of another kind."""
    if not isinstance(unread.error, UnavailableError):
        raise unread.error
    with patience.phase():
        batch = patiently(lambda: dataset.load(unread.request), patience)
    return batch.pin_memory() if torch.cuda.is_available() else batch


def _unchanged(batch: Any) -> Any:
    """Replace torch's collate function, since the data set returns whole batches."""
    return batch
