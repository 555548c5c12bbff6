"""Shipped recipes at a size that two CPU cores train in seconds, on generated data of the published layout.

A reduced recipe keeps its network's family, depths, heads, time steps and feedback, its loss, augmentation, optimizer and schedule. Its
channels, images and batches are the smallest that fit, and its epochs are four: one of warm-up, one or two at work, one of cool-down.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.formats.sample import RawSample
from data_pipelines.sources.base import Source
from data_pipelines.sources.cifar10_c import CIFAR10_CLASSES
from data_pipelines.sources.layouts import open_splits
from data_pipelines.sources.spikingjelly_frames import import_spikingjelly_module
from tdformer.config import RunConfig, shipped
from tdformer.config.yaml_io import load_config
from tests.runs import bits, cut_back, finished, resume, train
from tests.stripes import stored
from tests.unit.imagenet import plant_imagenet
from tests.unit.test_published_sets import gesture_files, plant_cifar, publish, zipped

EPOCHS, CUT = 4, 2
"""Each epoch is one step. The run is cut after step CUT, and goes on from there."""
IMAGE_SIZES = {224: 64, 288: 80, 384: 112}
"""Reduced sizes of images. Those of CIFAR and of event cameras stay as they are."""
MOST = 15
"""Samples in a reduced data set, at most: one global batch, and a rest."""
NAMES = [name for name in shipped.names() if name != "demo"]


def data_of(name: str) -> str:
    """Return the data set of a recipe: the folder that it lies in."""
    return name.split("/")[0]


def prepared(data: str, folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """Write the published files of a data set, with few samples, and prepare the sets train and val from them."""
    for split, source in _published(data, folder / "published", patch).items():
        stored(_Spread(source), folder / split)
    return folder


class _Spread:
    """MOST samples of a source, spread over it."""

    def __init__(self, source: Source) -> None:
        self.source, self.classes = source, source.classes
        self.ignored_files, self.left_out = source.ignored_files, source.left_out

    def __len__(self) -> int:
        return min(len(self.source), MOST)

    def __getitem__(self, index: int) -> RawSample:
        return self.source[self._place(index)]

    def origin(self, index: int) -> str:
        return self.source.origin(self._place(index))

    def fingerprint(self) -> str:
        return self.source.fingerprint()

    def _place(self, index: int) -> int:
        return index * len(self.source) // len(self)


def _published(data: str, folder: Path, patch: pytest.MonkeyPatch) -> dict[str, Source]:
    match data:
        case "imagenet":
            plant_imagenet(folder, per_class=5)
            return open_splits(folder, "imagenet")
        case "cifar10" | "cifar100":
            return open_splits(plant_cifar(folder, int(data.removeprefix("cifar")), images=15), data)
        case "dvs128":
            publish(folder, gesture_files(), import_spikingjelly_module("dvs128_gesture").DVS128Gesture, patch)
            return open_splits(folder, "dvs128-gesture", time_steps=16)
        case "cifar10_dvs":
            files = {f"{name}.zip": zipped(label, name, 10) for label, name in enumerate(CIFAR10_CLASSES)}
            publish(folder, files, import_spikingjelly_module("cifar10_dvs").CIFAR10DVS, patch)
            return open_splits(folder, "cifar10-dvs", time_steps=16)
    raise AssertionError(f"nobody knows how {data} is published")


def reduced(name: str, data: Path, mlflow: Path) -> dict[str, Any]:
    """Return the configuration of a recipe at its reduced size. data: what `prepared` returned. mlflow: a database for the run."""
    config = load_config(shipped.path_of(name))
    classes = len(json.loads((data / "train" / "manifest.json").read_text())["classes"])
    global_batch = 8 if config.model.backbone.in_channels == 2 else 12
    changes = [
        f"data.train={data / 'train'}",
        f"data.val={data / 'val'}",
        "data.train_samples=null",
        "data.workers=0",
        f"data.image_size={IMAGE_SIZES.get(config.data.image_size, config.data.image_size)}",
        f"model.num_classes={classes}",
        f"model.backbone.embed_dims={_fewest_channels(config)}",
        "init=null",
        f"training.epochs={EPOCHS}",
        f"training.global_batch={global_batch}",
        f"training.micro_batch={global_batch // 2}",
        "training.eval_batch=8",
        "training.log_every=1",
        f"optimizer.base_batch={global_batch}",
        f"optimizer.warmup_epochs={min(config.optimizer.warmup_epochs, 1):g}",
        f"optimizer.cooldown_epochs={min(config.optimizer.cooldown_epochs, 1)}",
        "checkpoint.every_steps=1",
        "checkpoint.keep_last=100",
        f"tracking.uri=sqlite:///{mlflow}",
        "tracking.system_metrics=false",
    ]
    if config.data.augment.mix_off_epoch is not None:
        changes.append(f"data.augment.mix_off_epoch={CUT}")
    return load_config(shipped.path_of(name), changes).model_dump(mode="json")


def _fewest_channels(config: RunConfig) -> int:
    """Return the smallest number of channels, from 24 on, that heads and stages divide."""
    backbone = config.model.backbone
    stages = len(backbone.depths)
    step = math.lcm(backbone.num_heads * 2 ** (stages - 1), 16 if backbone.variant == "dvs" else 8)
    return step * -(-24 // step)


def dry_run(name: str, data: Path, mlflow: Path, folder: Path) -> None:
    """Train a reduced recipe to its end, cut it back, go on, and evaluate it. Both ways must give the same bits."""
    run = train(reduced(name, data, mlflow), folder)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len([row for row in rows if "train/loss" in row]) == EPOCHS
    again = cut_back(run, folder / "again", CUT)
    resume(again)
    assert bits(again, EPOCHS) == bits(run, EPOCHS)
    evaluated = json.loads(finished("evaluate", again, "--json", "--which", "latest").stdout.splitlines()[-1])
    assert evaluated["top1"] == pytest.approx([row["val/top1"] for row in rows if "val/top1" in row][-1])
