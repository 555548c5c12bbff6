"""A small generated data set, and how a test writes a source to disk."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines.formats.manifest import Format
from data_pipelines.formats.sample import RawSample
from data_pipelines.prepare.options import Encoding, PrepareOptions
from data_pipelines.prepare.prepare_dataset import prepare_dataset
from data_pipelines.sources.base import Source


def stored(source: Source, folder: Path, format: Format = "wds", *, samples_per_shard: int = 10, seed: int = 0, **storage: Any) -> Path:
    """`source`, written into `folder`. FFCV: as raw pixels in small pages, unless `storage` says otherwise."""
    if format == "ffcv":
        storage = {"mode": "raw", "max_side": 512, **storage}
    prepare_dataset(source, folder, PrepareOptions(Encoding(format, **storage), samples_per_shard, seed))
    return folder


class StripesSource:
    """Generated 32x32 PNG images of three classes: horizontal, vertical and diagonal stripes with noise."""

    classes = ("horizontal", "vertical", "diagonal")
    ignored_files = 0
    left_out = ()

    def __init__(self, samples: int, seed: int) -> None:
        self.samples, self.seed = samples, seed

    def __len__(self) -> int:
        return self.samples

    def fingerprint(self) -> str:
        return f"stripes {self.samples} {self.seed}"

    def origin(self, index: int) -> str:
        return f"stripe {index}"

    def __getitem__(self, index: int) -> RawSample:
        random, label = np.random.default_rng([self.seed, index]), index % 3
        rows, columns = np.mgrid[0:32, 0:32] + random.integers(0, 8)
        wave = np.sin((rows, columns, rows + columns)[label] * 0.8)
        pixels = (128 + 90 * wave[..., None] + random.normal(0, 12, (32, 32, 3))).clip(0, 255)
        png = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(png, format="PNG")
        return RawSample(f"stripes-{self.seed}-{index:04d}", "png", png.getvalue(), label)
