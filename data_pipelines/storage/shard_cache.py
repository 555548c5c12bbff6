"""Downloads the shards of one remote data set into a cache folder, and opens them there."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from io import FileIO
from pathlib import Path
from uuid import uuid4

from data_pipelines.errors import DataError
from data_pipelines.storage.cache_folder import CacheFolder, file_lock
from data_pipelines.storage.locations import join_location
from data_pipelines.storage.remote_files import stream_bytes, with_retries
from data_pipelines.storage.shard_info import ShardInfo

TOUCH_SECONDS = 10.0
"""The time of last use is updated at most so often, since shards are opened for every sample."""
SHA256 = re.compile(r"[0-9a-f]{64}")
REMEDY = "copy the data set to its place again, manifest and shards"


class _MismatchError(DataError):
    """The downloaded bytes are not those that the manifest describes."""


@dataclass(frozen=True)
class ShardCache:
    """The shards of the data set at the URL `base`, cached in `folder`.

    It holds no open file and no connection, so that it can be pickled to loader processes.
    remedy: what messages advise if shards and manifest disagree.
    """

    base: str
    folder: CacheFolder
    remedy: str = REMEDY

    def check(self, shards: Sequence[ShardInfo], at_once: int = 1) -> None:
        """Raises DataError if the shards cannot be cached: for an invalid name or hash, a limit too small, or an unusable folder.

        at_once: number of shards that the sample order reads in turn. They, and the next download, must fit together. With less
        room, a shard would be downloaded again for every few samples.
        """
        for shard in shards:
            self._path(shard)
            join_location(self.base, shard.name)
        sizes = sorted((shard.bytes for shard in shards), reverse=True)[: at_once + 1]
        if self.folder.limit_bytes < sum(sizes):
            raise DataError(
                f"a shard cache of {self.folder.limit_bytes} bytes is too small for {self.base}: "
                f"{len(sizes)} shards of up to {sizes[0]} bytes must fit; allow at least {sum(sizes)} bytes."
            )
        with self.folder.local_errors(was_usable=False), self.folder.lock():
            pass

    def open(self, shard: ShardInfo) -> FileIO:
        """Open a shard for reading, and download it first if needed. An open shard stays readable when it is evicted.

        One process downloads a shard, and the others wait for it. Raises DataError, with the URL, for other bytes than the manifest
        describes, and what stream_bytes raises. Raises UnavailableError if the folder cannot be used.
        """
        path = self._path(shard)
        with self.folder.local_errors(was_usable=True):
            if file := _open_cached(path, shard):
                return file
            with file_lock(path.with_suffix(".lock")):
                # Another process may have downloaded the shard while this one waited for the lock.
                return _open_cached(path, shard) or self._fetch(shard, path)

    @cached_property
    def _home(self) -> Path:
        return self.folder.path / hashlib.sha256(self.base.rstrip("/").encode()).hexdigest()[:16]

    def _path(self, shard: ShardInfo) -> Path:
        # The hash becomes a file name, and a remote manifest is not to be trusted with one.
        if not SHA256.fullmatch(shard.sha256) or shard.bytes <= 0:
            raise DataError(f"the manifest of {self.base} gives {shard.name} no valid SHA-256 or size; {self.remedy}.")
        return self._home / shard.sha256

    def _fetch(self, shard: ShardInfo, path: Path) -> FileIO:
        """Download a shard whose lock the caller holds."""
        for leftover in path.parent.glob(f"{path.name}.*.part"):
            leftover.unlink()
        try:
            return with_retries(lambda: self._download(shard, path))
        except _MismatchError:  # the bytes may have been damaged on the way, so a second download is worth its time
            return with_retries(lambda: self._download(shard, path))

    def _download(self, shard: ShardInfo, path: Path) -> FileIO:
        partial = path.with_suffix(f".{uuid4().hex}.part")
        try:
            self.folder.reserve(shard.bytes, partial)
            self._fill(shard, partial)
            file = partial.open("rb", buffering=0)  # opened before it is published, since it may be evicted afterwards
            self.folder.publish(partial, path)
            return file
        finally:
            partial.unlink(missing_ok=True)

    def _fill(self, shard: ShardInfo, partial: Path) -> None:
        """Write the shard's bytes into a reserved file, and check their number and hash."""
        url, digest, size = join_location(self.base, shard.name), hashlib.sha256(), 0
        with partial.open("r+b") as file, closing(stream_bytes(url)) as chunks:
            for chunk in chunks:
                size += len(chunk)
                if size > shard.bytes:
                    raise _MismatchError(f"{url} has more than the {shard.bytes} bytes of the manifest; {self.remedy}.")
                digest.update(chunk)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())  # later only the size is checked, and the file has its size from the start
        if size != shard.bytes:
            raise _MismatchError(f"{url} has {size} bytes, the manifest says {shard.bytes}; {self.remedy}.")
        if digest.hexdigest() != shard.sha256:
            raise _MismatchError(f"{url} does not match its SHA-256 in the manifest; {self.remedy}.")


def _open_cached(path: Path, shard: ShardInfo) -> FileIO | None:
    """Open a cached shard, or return None if it is not there. Its size suffices as a check: its hash was checked at the download."""
    try:
        file = path.open("rb", buffering=0)
    except FileNotFoundError:
        return None
    stat = os.fstat(file.fileno())
    if stat.st_size != shard.bytes:
        file.close()
        return None
    if time.time() - stat.st_mtime > TOUCH_SECONDS:
        os.utime(file.fileno())
    return file
