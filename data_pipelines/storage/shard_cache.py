"""Whole shards of a remote data set, kept on a local disk within a bound.

    FOLDER/.lock                     held while room is made
    FOLDER/<data set>/<SHA-256>      a whole shard. Last modified: last used, within TOUCH_SECONDS
                     /<SHA-256>.lock   held by the process that downloads it
                     /<SHA-256>.<random>.part   being downloaded, of its final size from the start

Any number of processes of one machine share a folder. The kernel drops the locks of a process that dies, so a `.part` file
whose shard is not locked is a leftover. FOLDER must therefore be a disk of this machine, not one shared by several.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from io import FileIO
from pathlib import Path
from uuid import uuid4

from data_pipelines.errors import DataError
from data_pipelines.storage.locations import join
from data_pipelines.storage.remote_files import persistently, stream
from data_pipelines.storage.shard_info import ShardInfo

TOUCH_SECONDS = 10.0
"""A use is noted at most so often: shards are opened for every sample."""
ROOM_POLL_SECONDS = 0.2
SHA256 = re.compile(r"[0-9a-f]{64}")
CACHED = re.compile(r"[0-9a-f]{16}/[0-9a-f]{64}(\.[0-9a-f]{32}\.part)?")
"""What is counted and removed in a cache folder. Whatever else a user keeps there is left alone."""
REMEDY = "copy the data set to its place again, manifest and shards"


class _MismatchError(DataError):
    """What came is not what the manifest describes."""


@dataclass(frozen=True)
class ShardCache:
    """The shards of the data set at the URL `base`, in `folder`, where all data sets together take at most `limit_bytes`.

    Holds no open file and no connection, so that it can be sent to loader processes. remedy: what to do if shards and manifest
    disagree.
    """

    base: str
    folder: Path
    limit_bytes: int
    remedy: str = REMEDY

    def check(self, shards: Sequence[ShardInfo], at_once: int = 1) -> None:
        """Raises DataError if the shards cannot be cached: names or hashes that are none, a limit too small, no folder to write in.

        at_once: how many shards the sample order reads in turn. They and one that is on its way must fit: with room for
        fewer, a shard would be downloaded again for every few samples.
        """
        for shard in shards:
            self._place(shard)
            join(self.base, shard.name)
        sizes = sorted((shard.bytes for shard in shards), reverse=True)[: at_once + 1]
        if self.limit_bytes < sum(sizes):
            raise DataError(
                f"a shard cache of {self.limit_bytes} bytes is too small for {self.base}: {len(sizes)} shards of up to {sizes[0]} bytes "
                f"must fit; allow at least {sum(sizes)} bytes."
            )
        with self._local_errors(), self._locked(self.folder / ".lock"):
            pass

    def open(self, shard: ShardInfo) -> FileIO:
        """The whole shard, open for reading, downloaded if it is not here. It stays readable when it is evicted meanwhile.

        One process downloads a shard, the others wait for it. Raises DataError naming the URL if it cannot be had.
        """
        place = self._place(shard)
        with self._local_errors():
            if file := _open_whole(place, shard):
                return file
            with self._locked(place.with_suffix(".lock")):
                # Another process may have brought it while this one waited.
                return _open_whole(place, shard) or self._fetch(shard, place)

    @cached_property
    def _home(self) -> Path:
        return self.folder / hashlib.sha256(self.base.rstrip("/").encode()).hexdigest()[:16]

    def _place(self, shard: ShardInfo) -> Path:
        if not SHA256.fullmatch(shard.sha256) or shard.bytes <= 0:  # it becomes a file name, and a remote manifest is not to be trusted
            raise DataError(f"the manifest of {self.base} gives {shard.name} no valid SHA-256 or size; {self.remedy}.")
        return self._home / shard.sha256

    def _fetch(self, shard: ShardInfo, place: Path) -> FileIO:
        """To be called with the shard locked."""
        for leftover in place.parent.glob(f"{place.name}.*.part"):
            leftover.unlink()
        try:
            return persistently(lambda: self._download(shard, place))
        except _MismatchError:  # perhaps damaged on the way
            return persistently(lambda: self._download(shard, place))

    def _download(self, shard: ShardInfo, place: Path) -> FileIO:
        partial = place.with_suffix(f".{uuid4().hex}.part")
        try:
            self._reserve(shard, partial)
            self._fill(shard, partial)
            file = partial.open("rb", buffering=0)  # before others see it: from then on it may be evicted
            with self._locked(self.folder / ".lock"):
                partial.replace(place)
            return file
        finally:
            partial.unlink(missing_ok=True)

    def _fill(self, shard: ShardInfo, partial: Path) -> None:
        url, digest, size = join(self.base, shard.name), hashlib.sha256(), 0
        with partial.open("r+b") as file, closing(stream(url)) as chunks:
            for chunk in chunks:
                size += len(chunk)
                if size > shard.bytes:
                    raise _MismatchError(f"{url} has more than the {shard.bytes} bytes of the manifest; {self.remedy}.")
                digest.update(chunk)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())  # a cached file is trusted by its size, which it has from the start
        if size != shard.bytes:
            raise _MismatchError(f"{url} has {size} bytes, the manifest says {shard.bytes}; {self.remedy}.")
        if digest.hexdigest() != shard.sha256:
            raise _MismatchError(f"{url} does not match its SHA-256 in the manifest; {self.remedy}.")

    def _reserve(self, shard: ShardInfo, partial: Path) -> None:
        """Make a sparse file of the shard's size as soon as there is room for it; other processes count it from now on."""
        assert shard.bytes <= self.limit_bytes
        while True:
            with self._locked(self.folder / ".lock"):
                if self._make_room(shard.bytes):
                    with partial.open("xb") as file:
                        file.truncate(shard.bytes)
                    return
            time.sleep(ROOM_POLL_SECONDS)  # others' downloads fill the cache; once whole, they can be evicted

    def _make_room(self, needed: int) -> bool:
        """Evict the least recently used shards until `needed` bytes are free. To be called with the folder locked."""
        files = list(_cached_files(self.folder))
        excess = sum(stat.st_size for _, stat in files) + needed - self.limit_bytes
        whole = [(path, stat) for path, stat in files if path.suffix != ".part"]
        for path, stat in sorted(whole, key=lambda item: item[1].st_mtime_ns):
            if excess <= 0:
                break
            path.unlink(missing_ok=True)
            excess -= stat.st_size
        return excess <= 0

    @contextmanager
    def _locked(self, path: Path) -> Iterator[None]:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _local_errors(self) -> Iterator[None]:
        """What the local disk may object, as a DataError."""
        try:
            yield
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            reason = "no space is left on its disk" if full else error.strerror or str(error)
            remedy = (
                "free some, or allow the cache fewer bytes" if full else "choose a folder on a disk of this machine that you may write to"
            )
            raise DataError(f"the shard cache {self.folder} cannot be used ({reason}); {remedy}.") from None


def _open_whole(place: Path, shard: ShardInfo) -> FileIO | None:
    """The cached shard, if it is there. Trusted by its size: its hash was checked before it got its name."""
    try:
        file = place.open("rb", buffering=0)
    except FileNotFoundError:
        return None
    stat = os.fstat(file.fileno())
    if stat.st_size != shard.bytes:
        file.close()
        return None
    if time.time() - stat.st_mtime > TOUCH_SECONDS:
        os.utime(file.fileno())
    return file


def _cached_files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Shards of all data sets, whole or on their way. Leftovers are removed."""
    for path in folder.glob("*/*"):
        if not CACHED.fullmatch(f"{path.parent.name}/{path.name}"):
            continue
        with suppress(FileNotFoundError):  # a download that just failed
            if path.suffix != ".part" or not _remove_leftover(path):
                yield path, path.stat()


def _remove_leftover(partial: Path) -> bool:
    lock = partial.with_name(f"{partial.name.partition('.')[0]}.lock")
    with lock.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False  # a download under way
        partial.unlink()
        return True
