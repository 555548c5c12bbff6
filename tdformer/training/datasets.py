"""Opens the data sets of a run, and checks that they fit it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np

from data_pipelines.config import DataConfig
from data_pipelines.errors import DataError
from data_pipelines.loading.dataloader import check_transforms
from data_pipelines.loading.dataset import DataSet
from data_pipelines.loading.open_dataset import open_dataset
from data_pipelines.storage.cache_folder import CacheFolder
from tdformer.config import ModelConfig, RunConfig
from tdformer.config.short_runs import notes_on_length


def open_data(config: RunConfig, *, were_there: bool = False) -> tuple[DataSet, DataSet]:
    """Open the training and the validation set. were_there: the run has read them before, so a missing folder is a lost mount.

    Raises DataError if they do not fit the run. Raises UserError if the configuration asks for a transform that this kind of data, or the
    installed packages, do not have.
    """
    data = config.data
    train_set, val_set = open_dataset(data.train, cache_of(data), was_there=were_there), open_val(config, was_there=were_there)
    check_transforms(data, train_set)
    check_classes(val_set, train_set.classes, f"the training set {data.train}")
    _check_samples(config.data, config.model, train_set)
    if len(train_set.classes) > config.model.num_classes:
        raise DataError(
            f"{data.train} has labels of {len(train_set.classes)} classes, outside the {config.model.num_classes} of "
            f"model.num_classes; set it to {len(train_set.classes)}."
        )
    if data.train_samples not in (None, len(train_set)):
        raise DataError(
            f"{data.train} holds {len(train_set)} samples, data.train_samples says {data.train_samples}; "
            f"prepare or copy it again, or correct that key (null: any number)."
        )
    if len(train_set) < config.training.global_batch:
        raise DataError(
            f"{data.train} holds {len(train_set)} samples, fewer than training.global_batch "
            f"({config.training.global_batch}); lower it or add data."
        )
    if train_set.is_streamed:
        _check_cache(data, train_set)
    return train_set, val_set


def open_val(config: RunConfig, *, was_there: bool = False) -> DataSet:
    """Open the validation set alone. Raises as open_data does."""
    return open_set(config.data.val, config.data, config.model, was_there=was_there)


def open_set(location: str, data: DataConfig, model: ModelConfig, *, was_there: bool = False) -> DataSet:
    """Open a data set for a network. Raises DataError if its samples are not what the network takes."""
    opened = open_dataset(location, cache_of(data), was_there=was_there)
    _check_samples(data, model, opened)
    return opened


def notes_on(config: RunConfig, train_set: DataSet, val_set: DataSet, begun: bool) -> list[str]:
    """Return notes for the start of a run: things that are allowed, but that a user may not have meant.

    begun: the run goes on. Notes about keys that may not change any more are then left out.
    """
    notes, classes = [] if begun else notes_on_length(config, len(train_set)), len(train_set.classes)
    if classes < config.model.num_classes:
        notes.append(f"model.num_classes is {config.model.num_classes}, and the data has {classes} classes: the others are never right")
    if train_set.is_streamed or val_set.is_streamed:
        cache = cache_of(config.data)
        notes.append(f"shards are kept in {cache.path}, up to {cache.limit_bytes / 1e9:g} GB (data.shard_cache, data.shard_cache_gb)")
    return notes


def cache_of(config: DataConfig) -> CacheFolder:
    """Return where downloaded shards are kept. The default is a folder of this user in the machine's folder for temporary files."""
    folder = config.shard_cache or Path(tempfile.gettempdir()) / f"tdformer-shards-{os.getuid()}"
    return CacheFolder(folder, int(config.shard_cache_gb * 1e9))


def check_classes(opened: DataSet, classes: list[str], of: str) -> None:
    """Raise DataError unless the data set has exactly these classes, in this order. Otherwise a label would mean two things."""
    if opened.classes != classes:
        others = [name for name in opened.classes if name not in classes][:3] or "the same, in another order or number"
        raise DataError(f"{opened.location} names other classes than {of} ({others}); both must have the same, in the same order.")


def _check_samples(data: DataConfig, model: ModelConfig, opened: DataSet) -> None:
    """Raise DataError unless the samples are what the network takes: images, or event frames of its number of time steps."""
    channels = model.backbone.in_channels
    if opened.manifest.kind == "images":
        if channels != 3:
            raise DataError(f"{opened.location} holds images; set model.backbone.in_channels to 3, got {channels}.")
        return
    found = list(np.shape(np.asarray(opened.read(0))))
    wanted = [model.time_steps, channels, data.image_size, data.image_size]
    if found != wanted:
        raise DataError(
            f"{opened.location} holds event frames [T, 2, H, W] of {found}, the configuration asks for {wanted} "
            f"(model.time_steps, model.backbone.in_channels, data.image_size); correct it, or prepare with other --time-steps."
        )


def _check_cache(config: DataConfig, train_set: DataSet) -> None:
    """Raise DataError unless the cache holds the shards that the shuffle reads in turn. Otherwise most samples would download a shard."""
    shards = train_set.manifest.shards
    at_once = 2 * config.shuffle_window if config.shuffle == "blocks" else len(shards)
    sizes = sorted((shard.bytes for shard in shards), reverse=True)[: at_once + 1]
    if sum(sizes) > config.shard_cache_gb * 1e9:
        hint = "lower data.shuffle_window" if config.shuffle == "blocks" else "set data.shuffle to blocks"
        raise DataError(
            f"{config.train}: data.shard_cache_gb is {config.shard_cache_gb:g}, and the shuffle reads {len(sizes)} shards of "
            f"{sum(sizes) / 1e9:.3g} GB in turn, each of which would be downloaded again and again; raise it, or {hint}."
        )
