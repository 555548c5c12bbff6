"""Writes the parts of a WebDataset: each part is one tar shard."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from data_pipelines.formats.images import encode_jpeg
from data_pipelines.formats.index import Index, concatenate_indexes
from data_pipelines.formats.remedies import prepare_again
from data_pipelines.formats.sample import RawSample
from data_pipelines.formats.wds_scanner import scan_tar
from data_pipelines.formats.wds_writer import shard_name, write_shard
from data_pipelines.prepare.decoded_samples import DecodedSample
from data_pipelines.prepare.journal import PartRecord, part_index
from data_pipelines.prepare.options import DEFAULT_QUALITY, Encoding
from data_pipelines.storage.shard_info import ShardInfo


class WdsPartWriter:
    """Writes each part as a tar shard, which gets its final name as soon as it is complete."""

    def __init__(self, folder: Path, work: Path, encoding: Encoding) -> None:
        self.folder, self.work, self.encoding = folder, work, encoding

    def path(self, number: int) -> Path:
        """The file of part `number`."""
        return self.folder / shard_name(number)

    def write(self, number: int, samples: Iterable[DecodedSample]) -> ShardInfo:
        """Write part `number` and its index. Raises OSError if the disk refuses."""
        shard = write_shard(self.path(number), (self._encoded(sample) for sample in samples))
        rows = scan_tar(self.path(number), prepare_again(self.folder))
        Index.from_rows((number, *row) for row in rows).save(part_index(self.work, number))
        return shard

    def _encoded(self, sample: DecodedSample) -> RawSample:
        raw, image = sample.raw, sample.image
        if image is None or (self.encoding.quality is None and not sample.shrunk):
            return raw
        return RawSample(raw.key, "jpg", encode_jpeg(image, self.encoding.quality or DEFAULT_QUALITY), raw.label)

    def finish(self, records: list[PartRecord]) -> tuple[list[ShardInfo], Index]:
        """Remove empty shards, and return the shards and the index of the data set."""
        filled = [record for record in records if record.samples]
        for record in records:
            if not record.samples:
                self.path(record.number).unlink(missing_ok=True)
        shards = [ShardInfo(self.path(record.number).name, record.samples, record.bytes, record.sha256) for record in filled]
        return shards, concatenate_indexes([Index.load(part_index(self.work, record.number)) for record in filled])
