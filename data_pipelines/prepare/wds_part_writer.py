"""TODO."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from data_pipelines.formats import wds_shards
from data_pipelines.formats.images import encode_jpeg
from data_pipelines.formats.index import Index, joined
from data_pipelines.formats.remedies import prepare_again
from data_pipelines.formats.sample import RawSample
from data_pipelines.prepare.decoded_samples import WholeSample
from data_pipelines.prepare.journal import PartRecord, part_index
from data_pipelines.prepare.options import USUAL_QUALITY, Storage
from data_pipelines.storage.shard_info import ShardInfo


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
