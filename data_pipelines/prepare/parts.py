"""A part of a data set while it is written: about a thousand samples that are whole, in the format that was asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from data_pipelines.errors import DataError
from data_pipelines.formats import ffcv_file, wds_shards
from data_pipelines.formats.events import decode_frames
from data_pipelines.formats.images import decode, encode_jpeg
from data_pipelines.formats.index import Index, joined
from data_pipelines.formats.keys import is_storable
from data_pipelines.formats.manifest import Format, ShardInfo, prepare_again
from data_pipelines.formats.turbojpeg import need_ffcv
from data_pipelines.prepare.journal import LeftOut, PartRecord, part_index
from data_pipelines.sources.base import RawSample, Source
from data_pipelines.storage.files import replace_file

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


class WholeSample(NamedTuple):
    """A sample as it came, its image (none for event frames), and whether that was reduced."""

    raw: RawSample
    image: Image.Image | None
    reduced: bool


class WholeSamples:
    """Iterates over a part's samples, decoded; those that are no whole image are left out, and noted in `left_out`."""

    def __init__(self, source: Source, part: Part, short_side: int | None, *, stop_at_bad: bool) -> None:
        self.source, self.part, self.short_side, self.stop_at_bad = source, part, short_side, stop_at_bad
        self.left_out: list[LeftOut] = []

    def __iter__(self) -> Iterator[WholeSample]:
        for index in map(int, self.part.samples):
            try:
                whole = self._checked(self.source[index])
            except DataError as error:
                if self.stop_at_bad:
                    remedy = "mend or remove it, or leave such files out: --on-bad-image leave-out"
                    raise DataError(f"{self.source.place(index)}: {error}; {remedy}.") from None
                self.left_out.append(LeftOut(self.source.place(index), str(error)))
                continue
            yield whole

    def _checked(self, raw: RawSample) -> WholeSample:
        if not is_storable(raw.key):
            raise DataError(f"its name {raw.key!a} holds what no key can: control characters or bytes that are no UTF-8; rename it")
        if raw.extension == "npy":
            decode_frames(raw.data)
            return WholeSample(raw, None, False)
        image = decode(raw.data)
        reduced = reduce_to(image, self.short_side)
        return WholeSample(raw, reduced, reduced is not image)


def reduce_to(image: Image.Image, short_side: int | None) -> Image.Image:
    """The image with its short side reduced to this length, its proportions kept; the same object if it is not longer."""
    short = min(image.size)
    if short_side is None or short <= short_side:
        return image
    width, height = (max(1, round(side * short_side / short)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


class WdsParts:
    """Each part is a tar shard, which stands under its final name as soon as it is whole."""

    def __init__(self, folder: Path, work: Path, storage: Storage, seed: int) -> None:
        self.folder, self.work, self.storage = folder, work, storage

    def path(self, number: int) -> Path:
        return self.folder / wds_shards.shard_name(number)

    def write(self, number: int, samples: Iterable[WholeSample]) -> ShardInfo:
        shard = wds_shards.write_shard(self.path(number), (self._encoded(*sample) for sample in samples))
        rows = wds_shards.scan_tar(self.path(number), prepare_again(self.folder))
        Index.of((number, *row) for row in rows).save(part_index(self.work, number))
        return shard

    def _encoded(self, raw: RawSample, image: Image.Image | None, reduced: bool) -> RawSample:
        if image is None or (self.storage.quality is None and not reduced):
            return raw
        return RawSample(raw.key, "jpg", encode_jpeg(image, self.storage.quality or USUAL_QUALITY), raw.label)

    def join(self, records: list[PartRecord]) -> tuple[list[ShardInfo], Index]:
        filled = [record for record in records if record.samples]
        for record in records:
            if not record.samples:
                self.path(record.number).unlink(missing_ok=True)
        infos = [ShardInfo(self.path(record.number).name, record.samples, record.bytes, record.sha256) for record in filled]
        return infos, joined([Index.load(part_index(self.work, record.number)) for record in filled])


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


Parts = WdsParts | FfcvParts


def parts_of(folder: Path, work: Path, storage: Storage, seed: int) -> Parts:
    kind = FfcvParts if storage.format == "ffcv" else WdsParts
    return kind(folder, work, storage, seed)
