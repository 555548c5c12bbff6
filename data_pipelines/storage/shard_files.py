"""TODO."""

from __future__ import annotations

from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Protocol

from data_pipelines.storage.shard_cache import ShardCache
from data_pipelines.storage.shard_info import ShardInfo


class Shards(Protocol):
    """The tar files of a data set, by their numbers in the manifest."""

    def open(self, number: int) -> FileIO: ...


@dataclass(frozen=True)
class LocalShards:
    """On a disk of this machine, or on a file system that it shares."""

    paths: list[Path]

    def open(self, number: int) -> FileIO:
        return self.paths[number].open("rb", buffering=0)


@dataclass(frozen=True)
class CachedShards:
    """At a URL; each is downloaded as a whole when it is first read."""

    cache: ShardCache
    infos: list[ShardInfo]

    def open(self, number: int) -> FileIO:
        return self.cache.open(self.infos[number])
