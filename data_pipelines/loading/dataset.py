"""Defines an opened data set, which reads any of its samples, whatever its format and location."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from data_pipelines.errors import DataError, UnavailableError
from data_pipelines.formats.images import Pixels
from data_pipelines.formats.index import Index, dataset_digest
from data_pipelines.formats.manifest import Manifest
from data_pipelines.formats.wds_reader import WdsReader
from data_pipelines.storage.shard_files import CachedShardFiles


class Reader(Protocol):
    """Reads samples of one format. It is pickled to loader processes."""

    def read(self, sample: int) -> Pixels:
        """Decode one sample.

        Raises DataError if it is damaged, and UnavailableError if it cannot be read now, both without the shard and the key.
        """
        ...


@dataclass(frozen=True)
class DataSet:
    """An opened data set. Samples are numbered from 0 in storage order."""

    location: str
    manifest: Manifest
    index: Index
    reader: Reader

    @property
    def classes(self) -> list[str]:
        """The class names, in the order of the class indices."""
        return self.manifest.classes

    def __len__(self) -> int:
        return len(self.index)

    def read(self, sample: int) -> Pixels:
        """Decode one sample. Raises DataError or UnavailableError with the shard and the key."""
        try:
            return self.reader.read(sample)
        except DataError as error:
            source, again = ("its shard", "index") if self.manifest.shards_at else ("the source", "prepare")
            remedy = f"mend or remove it in {source}, remove {self.location} and {again} it again"
            raise DataError(f"{self.describe(sample)}: {str(error).rstrip('.')}; {remedy}.") from None
        except UnavailableError as error:
            sample_of = f"sample {self.index.key_of(sample)}" if self.is_streamed else self.describe(sample)  # an error names its URL
            raise UnavailableError(f"{sample_of}: {error}", error.retry_after_s) from None

    def describe(self, sample: int) -> str:
        """Name a sample and its shard, for messages."""
        shard = self.manifest.shards[self.index["shard"][sample]].name
        return f"sample {self.index.key_of(sample)} in {(self.manifest.shards_at or self.location).rstrip('/')}/{shard}"

    @property
    def is_streamed(self) -> bool:
        """True if the shards come from a URL, through the shard cache."""
        return isinstance(self.reader, WdsReader) and isinstance(self.reader.shards, CachedShardFiles)

    def digest(self) -> str:
        """Hash the samples and their storage order. The digest is the same in every format.

        A data cursor is valid only for the digest with which it was saved.
        """
        return dataset_digest(self.index, self.manifest.blocks)
