"""TODO."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from data_pipelines.formats.manifest import Format
from data_pipelines.sources.base import Source

USUAL_QUALITY = 90


@dataclass(frozen=True)
class Storage:
    """How images are stored. It is part of what a data set was made from."""

    format: Format = "wds"
    short_side: int | None = None
    """Pixels; images with a longer short side are reduced to it."""
    quality: int | None = None
    """Of JPEGs, in percent. WebDataset: without it, images that are not reduced keep their own bytes."""
    mode: Literal["raw", "jpg", "proportion"] = "proportion"
    """FFCV: as pixels, as JPEG, or a share of them as JPEG."""
    jpeg_share: float = 0.5
    """FFCV, for proportion."""
    max_side: int | None = None
    """FFCV: pixels; images with a longer long side are reduced to it."""


@dataclass(frozen=True)
class Part:
    """What is to be written: the part's number, and its samples by their positions in the source."""

    number: int
    samples: np.ndarray


@dataclass(frozen=True)
class Plan:
    """What is to be written, and how. samples_per_shard: also the size of the blocks of an FFCV file. seed: of the order in storage."""

    storage: Storage = field(default_factory=Storage)
    samples_per_shard: int = 1000
    seed: int = 0
    stop_at_bad: bool = False
    """Stop at the first file that is no whole image, instead of leaving such files out."""

    def recipe(self, source: Source) -> dict[str, Any]:
        """What decides over every byte that is written."""
        stored = {"samples_per_shard": self.samples_per_shard, "seed": self.seed, **asdict(self.storage)}
        return {"source": source.fingerprint(), "classes": list(source.classes), **stored}

    def parts(self, samples: int) -> list[Part]:
        order = np.random.default_rng(self.seed).permutation(samples)
        starts = range(0, samples, self.samples_per_shard)
        return [Part(number, order[start : start + self.samples_per_shard]) for number, start in enumerate(starts)]
