"""TODO."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipelines.formats import ffcv_file
from data_pipelines.formats.ffcv_writer import StoredSample
from data_pipelines.formats.index import Index
from data_pipelines.formats.turbojpeg import need_ffcv
from data_pipelines.prepare.decoded_samples import WholeSample
from data_pipelines.prepare.journal import PartRecord
from data_pipelines.prepare.options import USUAL_QUALITY, Storage
from data_pipelines.storage.files import replace_file
from data_pipelines.storage.shard_info import ShardInfo


def as_stored(key: str, label: int, image: Image.Image, *, mode: str, jpeg_share: float, seed: list[int]) -> StoredSample:
    """mode: raw, jpg, or proportion, which stores a share of the images, chosen by the seed, as JPEG and the others raw."""
    chosen = mode == "jpg" or (mode == "proportion" and np.random.default_rng(seed).random() < jpeg_share)
    return StoredSample(key, label, np.asarray(image), chosen)


class FfcvParts:
    """Each part is a file of pages with its tables beside it; all are joined into one FFCV file in the end."""

    def __init__(self, folder: Path, work: Path, storage: Storage, seed: int) -> None:
        need_ffcv()
        self.folder, self.work, self.storage, self.seed = folder, work, storage, seed

    def path(self, number: int) -> Path:
        return self.work / f"part-{number:06d}.pages"

    def write(self, number: int, samples: Iterable[WholeSample]) -> ShardInfo:
        storage, path = self.storage, self.path(number)
        stored = (
            ffcv_file.as_stored(
                raw.key, raw.label, image, mode=storage.mode, jpeg_share=storage.jpeg_share, seed=[self.seed, number, position]
            )
            for position, (raw, image, _) in enumerate(samples)
            if image is not None
        )
        quality, written = storage.quality or USUAL_QUALITY, 0

        def write(partial: Path) -> None:
            nonlocal written
            part = ffcv_file.write_part(partial, stored, max_side=storage.max_side, quality=quality)
            part.save(self._tables(number))
            written = len(part.metadata)

        replace_file(path, write)
        return ShardInfo(path.name, written, path.stat().st_size, "")

    def _tables(self, number: int) -> Path:
        return self.work / f"part-{number:06d}.npz"

    def join(self, records: list[PartRecord]) -> tuple[list[ShardInfo], Index]:
        parts = [(self.path(r.number), ffcv_file.Part.load(self._tables(r.number))) for r in records if r.samples]
        shard, index = ffcv_file.join_parts(self.folder, parts, self.storage.max_side)
        return [shard], index
