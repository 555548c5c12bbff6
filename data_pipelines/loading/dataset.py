"""TODO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from data_pipelines.errors import DataError
from data_pipelines.formats.images import Pixels
from data_pipelines.formats.index import Index, digest_of
from data_pipelines.formats.manifest import Manifest
from data_pipelines.formats.wds_reader import TarReader
from data_pipelines.storage.shard_files import CachedShards


class Reader(Protocol):
    """Reads samples of one format. It is pickled to loader processes."""

    def read(self, sample: int) -> Pixels:
        """Raises DataError, without a place, for what is no whole image or cannot be read."""
        ...


@dataclass(frozen=True)
class DataSet:
    """An opened data set. Samples are numbered from 0 in the order in which they are stored."""

    location: str
    manifest: Manifest
    index: Index
    reader: Reader

    @property
    def classes(self) -> list[str]:
        return self.manifest.classes

    def __len__(self) -> int:
        return len(self.index)

    def read(self, sample: int) -> Pixels:
        """Raises DataError with the shard and the key."""
        try:
            return self.reader.read(sample)
        except DataError as error:
            source, again = ("its shard", "index") if self.manifest.shards_at else ("the source", "prepare")
            remedy = f"mend or remove it in {source}, remove {self.location} and {again} it again"
            raise DataError(f"{self.describe(sample)}: {str(error).rstrip('.')}; {remedy}.") from None

    def describe(self, sample: int) -> str:
        """Where a sample lies, for messages."""
        shard = self.manifest.shards[self.index["shard"][sample]].name
        return f"sample {self.index.key_of(sample)} in {(self.manifest.shards_at or self.location).rstrip('/')}/{shard}"

    @property
    def streams(self) -> bool:
        """Whether its shards come from a URL, through the shard cache."""
        return isinstance(self.reader, TarReader) and isinstance(self.reader.shards, CachedShards)

    def digest(self) -> str:
        """Of the samples and their order, the same in every format: a position in the data means something for this digest only."""
        return digest_of(self.index, self.manifest.blocks)
