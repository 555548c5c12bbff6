"""Writes the parts of an FFCV data set: each part is a file of pages, and all parts become one FFCV file at the end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from data_pipelines.formats.ffcv_joiner import join_parts
from data_pipelines.formats.ffcv_writer import FfcvPart, FfcvSample, write_part
from data_pipelines.formats.index import Index
from data_pipelines.formats.turbojpeg import require_ffcv
from data_pipelines.prepare.decoded_samples import DecodedSample
from data_pipelines.prepare.journal import PartRecord
from data_pipelines.prepare.options import DEFAULT_QUALITY, Encoding
from data_pipelines.storage.files import replace_file
from data_pipelines.storage.shard_info import ShardInfo


class FfcvPartWriter:
    """Writes each part as a file of pages with its tables beside it.

    seed: seed of the draw that chooses which images become JPEG. Raises UserError if FFCV is not installed.
    """

    def __init__(self, folder: Path, work: Path, encoding: Encoding, seed: int) -> None:
        require_ffcv()
        self.folder, self.work, self.encoding, self.seed = folder, work, encoding, seed

    def path(self, number: int) -> Path:
        """The file with the pages of part `number`."""
        return self.work / f"part-{number:06d}.pages"

    def write(self, number: int, samples: Iterable[DecodedSample]) -> ShardInfo:
        """Write the pages and tables of part `number`. Raises OSError if the disk refuses, DataError for an image larger than a page."""
        path, written = self.path(number), 0
        quality = self.encoding.quality or DEFAULT_QUALITY

        def write(partial: Path) -> None:
            nonlocal written
            part = write_part(partial, self._encoded(number, samples), max_side=self.encoding.max_side, quality=quality)
            part.save(self._tables(number))
            written = len(part.metadata)

        replace_file(path, write)
        return ShardInfo(path.name, written, path.stat().st_size, "")

    def _encoded(self, number: int, samples: Iterable[DecodedSample]) -> Iterator[FfcvSample]:
        for position, (raw, image, _) in enumerate(samples):
            if image is not None:
                yield FfcvSample(raw.key, raw.label, np.asarray(image), self._becomes_jpeg(number, position))

    def _becomes_jpeg(self, number: int, position: int) -> bool:
        """Decide by (seed, part, position), so that a repeated attempt writes the same bytes."""
        if self.encoding.mode != "proportion":
            return self.encoding.mode == "jpg"
        return np.random.default_rng([self.seed, number, position]).random() < self.encoding.jpeg_share

    def _tables(self, number: int) -> Path:
        return self.work / f"part-{number:06d}.npz"

    def finish(self, records: list[PartRecord]) -> tuple[list[ShardInfo], Index]:
        """Join the parts into one FFCV file, and return it and the index of the data set."""
        parts = [(self.path(r.number), FfcvPart.load(self._tables(r.number))) for r in records if r.samples]
        shard, index = join_parts(self.folder, parts, self.encoding.max_side)
        return [shard], index
