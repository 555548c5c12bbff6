"""TODO."""

from __future__ import annotations

import math
from pathlib import Path

from data_pipelines.sources.base import Source
from data_pipelines.sources.events import EventSource
from data_pipelines.sources.spikingjelly_frames import _integrated, spikingjelly_datasets

TRAIN_RATIO = 0.9


def open_cifar10_dvs(root: Path, time_steps: int) -> dict[str, Source]:
    """`train` and `val` of CIFAR10-DVS, which was published without a split: the first 90 % of each class, and the rest.

    "First" is by file name, as words: …_0, …_1, …_10, …_100. This is the split of spikingjelly's
    split_to_train_test_set(0.9, dataset, 10, random_split=False), which rounds the training part up.
    Raises DataError if downloads are missing or damaged.
    """
    module = spikingjelly_datasets("cifar10_dvs")
    dataset = _integrated(module.CIFAR10DVS, root, time_steps, sorted(module.CIFAR10DVS_CLASS_NAMES))
    train, val = _split(dataset.samples, len(dataset.classes))
    return {"train": EventSource(train, dataset.classes, time_steps), "val": EventSource(val, dataset.classes, time_steps)}


Files = list[tuple[str, int]]


def _split(files: Files, classes: int) -> tuple[Files, Files]:
    train: Files = []
    val: Files = []
    for label in range(classes):
        of_class = [file for file in files if file[1] == label]
        border = math.ceil(len(of_class) * TRAIN_RATIO)
        train += of_class[:border]
        val += of_class[border:]
    return train, val
