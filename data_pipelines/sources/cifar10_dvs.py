"""Reads the event data set CIFAR10-DVS."""

from __future__ import annotations

import math
from pathlib import Path

from data_pipelines.sources.base import Source
from data_pipelines.sources.event_source import EventSource
from data_pipelines.sources.spikingjelly_frames import import_spikingjelly_module, integrate_frames

TRAIN_RATIO = 0.9

Files = list[tuple[str, int]]
"""Files of frames with their class indices."""


def open_cifar10_dvs(root: Path, time_steps: int) -> dict[str, Source]:
    """Open `train` and `val`. time_steps: frames per sample.

    The data set was published without a split. `train` is the first 90 % of each class, rounded up, and `val` is the rest. Files are
    sorted by name as text: …_0, …_1, …_10, …_100. spikingjelly makes the same split with
    split_to_train_test_set(0.9, dataset, 10, random_split=False).
    Raises DataError if downloads are missing or damaged.
    """
    module = import_spikingjelly_module("cifar10_dvs")
    dataset = integrate_frames(module.CIFAR10DVS, root, time_steps, sorted(module.CIFAR10DVS_CLASS_NAMES))
    train, val = _split(dataset.samples, len(dataset.classes))
    return {"train": EventSource(train, dataset.classes, time_steps), "val": EventSource(val, dataset.classes, time_steps)}


def _split(files: Files, classes: int) -> tuple[Files, Files]:
    train: Files = []
    val: Files = []
    for label in range(classes):
        of_class = [file for file in files if file[1] == label]
        border = math.ceil(len(of_class) * TRAIN_RATIO)
        train += of_class[:border]
        val += of_class[border:]
    return train, val
