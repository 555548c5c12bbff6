"""Says how a data set is written: its image encoding, its parts, and the recipe that identifies the result."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from data_pipelines.formats.manifest import Format
from data_pipelines.sources.base import Source
from data_pipelines.storage.passing_trouble import reading
from data_pipelines.storage.patience import Patience, patiently

DEFAULT_QUALITY = 90
"""JPEG quality in percent where the options name none."""


@dataclass(frozen=True)
class Encoding:
    """How images are encoded on disk. The encoding is part of a data set's recipe."""

    format: Format = "wds"
    short_side: int | None = None
    """Images with a longer short side are shrunk to this one, in pixels. None: no image is shrunk."""
    quality: int | None = None
    """JPEG quality in percent. WebDataset without a quality: images that are not shrunk keep their original bytes."""
    mode: Literal["raw", "jpg", "proportion"] = "proportion"
    """FFCV only. Images are stored as pixels, as JPEG, or a share of them as JPEG."""
    jpeg_share: float = 0.5
    """FFCV with the mode `proportion` only: the share of images that become JPEG."""
    max_side: int | None = None
    """FFCV only. Images with a longer long side are shrunk to this one, in pixels."""


@dataclass(frozen=True)
class Part:
    """One part of a data set: its number, and the positions of its samples in the source, int64 [N]."""

    number: int
    samples: np.ndarray


@dataclass(frozen=True)
class PrepareOptions:
    """All choices of `prepare_dataset`.

    samples_per_shard: samples per part. A part is a tar shard, or a block of an FFCV file.
    seed: seed of the order in which samples are stored.
    """

    encoding: Encoding = field(default_factory=Encoding)
    samples_per_shard: int = 1000
    seed: int = 0
    stop_at_bad: bool = False
    """True: stop at the first damaged file. False: leave damaged files out and list them."""
    patience: Patience = field(default_factory=Patience)
    """How long each process waits for a file of the source that cannot be read now."""

    def recipe(self, source: Source) -> dict[str, Any]:
        """The values that decide every byte of the data set. Two runs with one recipe write the same bytes.

        Raises UnavailableError if the source cannot be looked at now.
        """

        def fingerprint() -> str:
            with reading("the source", was_there=True):
                return source.fingerprint()

        options = {"samples_per_shard": self.samples_per_shard, "seed": self.seed, **asdict(self.encoding)}
        return {"source": patiently(fingerprint, self.patience), "classes": list(source.classes), **options}

    def parts(self, samples: int) -> list[Part]:
        """Cut a seeded permutation of the source's samples into consecutive parts."""
        order = np.random.default_rng(self.seed).permutation(samples)
        starts = range(0, samples, self.samples_per_shard)
        return [Part(number, order[start : start + self.samples_per_shard]) for number, start in enumerate(starts)]
