"""Bounds the size of a cache folder: reserves room for downloads, and evicts the least recently used files.

    FOLDER/.lock                                held while room is made
    FOLDER/<data set>/<SHA-256>                 a complete file; its modification time tells when it was last used
    FOLDER/<data set>/<SHA-256>.lock            held by the process that downloads the file
    FOLDER/<data set>/<SHA-256>.<random>.part   a download under way; it has its final size from the start

Any number of processes of one machine share a folder. The kernel releases the locks of a process that dies. So a `.part` file
whose lock is free is a leftover. FOLDER must be on a disk of this machine, since such locks do not always reach other machines.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from data_pipelines.errors import UnavailableError, UserError
from data_pipelines.storage.locks import HeldError, locked
from data_pipelines.storage.passing_trouble import is_passing, reason_of

ROOM_POLL_SECONDS = 0.2
CACHED_FILE = re.compile(r"[0-9a-f]{16}/[0-9a-f]{64}(\.[0-9a-f]{32}\.part)?")
"""Only such files are counted and removed. Whatever else a user keeps in the folder is left alone."""


@dataclass(frozen=True)
class CacheFolder:
    """A folder in which the shards of all data sets together take at most `limit_bytes`.

    It holds no open file, so that it can be pickled to loader processes.
    """

    path: Path
    limit_bytes: int

    def reserve(self, size: int, partial: Path) -> None:
        """Create a sparse file of `size` bytes as soon as there is room for it. Other processes count it from then on."""
        assert size <= self.limit_bytes
        while True:
            with self.lock():
                if self._make_room(size):
                    with partial.open("xb") as file:
                        file.truncate(size)
                    return
            # The downloads of other processes fill the folder. They can be evicted once they are complete.
            time.sleep(ROOM_POLL_SECONDS)

    def publish(self, partial: Path, path: Path) -> None:
        """Give a complete download its final name. From then on it may be evicted."""
        with self.lock():
            partial.replace(path)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lock of the whole folder."""
        with file_lock(self.path / ".lock"):
            yield

    @contextmanager
    def local_errors(self, *, was_usable: bool) -> Iterator[None]:
        """Turn an error of the local disk into a sentence, which is about the folder and never about the samples in it.

        was_usable: the folder was used before, so whatever it lacks now may come back: an UnavailableError. Otherwise a UserError
        says what has to be mended, unless the trouble passes by itself.
        """
        try:
            yield
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            reason = "no space is left on its disk" if full else reason_of(error)
            remedy = (
                "free some, or allow the cache fewer bytes" if full else "choose a folder on a disk of this machine that you may write to"
            )
            if was_usable or is_passing(error):
                raise UnavailableError(f"the shard cache {self.path} cannot be used now ({reason}); {remedy}, and go on.") from None
            raise UserError(f"the shard cache {self.path} cannot be used ({reason}); {remedy}.") from None

    def _make_room(self, needed: int) -> bool:
        """Evict the least recently used files until `needed` bytes are free. The caller holds the folder's lock."""
        files = list(_cached_files(self.path))
        excess = sum(stat.st_size for _, stat in files) + needed - self.limit_bytes
        complete = [(path, stat) for path, stat in files if path.suffix != ".part"]
        for path, stat in sorted(complete, key=lambda item: item[1].st_mtime_ns):
            if excess <= 0:
                break
            path.unlink(missing_ok=True)
            excess -= stat.st_size
        return excess <= 0


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path`. Waits for it, and makes the file and its folder if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path, wait=True):
        yield


def _cached_files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """List the complete files and the downloads under way, of all data sets. Removes leftovers."""
    for path in folder.glob("*/*"):
        if not CACHED_FILE.fullmatch(f"{path.parent.name}/{path.name}"):
            continue
        with suppress(FileNotFoundError):  # the download failed, and its file went, since the folder was listed
            if path.suffix != ".part" or not _remove_leftover(path):
                yield path, path.stat()


def _remove_leftover(partial: Path) -> bool:
    """Remove the file of a download whose process has died. Returns False if the download is under way."""
    lock = partial.with_name(f"{partial.name.partition('.')[0]}.lock")
    try:
        with locked(lock, wait=False):
            partial.unlink()
    except HeldError:
        return False
    return True
