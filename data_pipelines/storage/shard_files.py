"""Opens the shards of a data set, whether they are local files or come from a URL."""

from __future__ import annotations

from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Protocol

from data_pipelines.storage.shard_cache import ShardCache
from data_pipelines.storage.shard_info import ShardInfo


class ShardFiles(Protocol):
    """The shards of a data set, by their numbers in the manifest."""

    def open(self, number: int) -> FileIO:
        """Open shard `number` for reading. Raises OSError or DataError if it cannot be opened."""
        ...


@dataclass(frozen=True)
class LocalShardFiles:
    """Shards on a disk of this machine, or on a file system that it shares with others."""

    paths: list[Path]

    def open(self, number: int) -> FileIO:
        return self.paths[number].open("rb", buffering=0)


@dataclass(frozen=True)
class CachedShardFiles:
    """Shards at a URL. Each is downloaded as a whole when it is first read."""

    cache: ShardCache
    shards: list[ShardInfo]

    def open(self, number: int) -> FileIO:
        return self.cache.open(self.shards[number])
