"""The data sets of a run, opened and checked against it."""

from __future__ import annotations

from data_pipelines.errors import DataError
from data_pipelines.shards import ShardSet
from tdformer.config import RunConfig


def open_data(config: RunConfig) -> tuple[ShardSet, ShardSet]:
    """The training and validation sets. Raises DataError if they cannot serve the run."""
    train_set, val_set = ShardSet.open(config.data.train), ShardSet.open(config.data.val)
    check_classes(val_set, train_set.classes, f"the training set {config.data.train}")
    if len(train_set.classes) > config.model.num_classes:
        raise DataError(
            f"{config.data.train} has labels of {len(train_set.classes)} classes, outside the {config.model.num_classes} of "
            f"model.num_classes; set it to {len(train_set.classes)}."
        )
    if config.data.train_samples not in (None, len(train_set)):
        raise DataError(
            f"{config.data.train} holds {len(train_set)} samples, data.train_samples says {config.data.train_samples}; "
            f"prepare or copy it again, or correct that key (null: any number)."
        )
    if len(train_set) < config.training.global_batch:
        raise DataError(
            f"{config.data.train} holds {len(train_set)} samples, fewer than training.global_batch "
            f"({config.training.global_batch}); lower it or add data."
        )
    return train_set, val_set


def check_classes(opened: ShardSet, classes: list[str], of: str) -> None:
    """A label means the same in both only if their classes are the same, in the same order."""
    if opened.classes != classes:
        raise DataError(f"{opened.folder} names other classes than {of}; prepare both from the same source.")
