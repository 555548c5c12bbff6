"""A lock file, held by one process at a time, on file systems that several machines share and where flock cannot be relied on.

filelock's SoftFileLease (4.2) does not replace it: it takes over no dead lock on NFS, which cannot exchange two names in one step,
and it takes over a live one from another machine of the same host name.

    lock.json             the Holder as JSON; the file's modification time is the holder's last heartbeat
    lock.json.<token>     the right to change the lock with this token; it is a lock file too, but an empty one

A process makes a lock with O_EXCL. It changes an existing one only while it holds the right to do so, and after it has found the same
token in the lock once more. Therefore one process gets a stale lock, even if several find it at the same time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import NamedTemporaryFile

from tdformer.rundir.copies import original_of
from tdformer.rundir.lock_holder import Holder

STALE_SECONDS = 60.0
"""A holder on another machine is taken for dead after this time without a heartbeat."""


def take(path: Path, own: Holder | None) -> bool:
    """Make the lock, or take over a stale one. Return True if `own` holds it now; None stands for a holder without a name.

    Raises OSError if the file system cannot write it.
    """
    if create(path, own):
        return True
    seen = read(path)
    return is_stale(path, seen) and replace(path, seen, own)


def create(path: Path, own: Holder | None) -> bool:
    """Make the lock. Return False if there is one. Raises OSError as `take` does."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return False
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(json.dumps(asdict(own)) if own else "")
    except OSError:  # A full disk must not leave a lock that nobody holds.
        path.unlink(missing_ok=True)
        raise
    return True


def read(path: Path) -> Holder | None:
    """Return the holder of the lock; None if there is no lock, or if its holder died before it had written its name."""
    try:
        return Holder(**json.loads(path.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def is_stale(path: Path, holder: Holder | None) -> bool:
    """Return True if the holder has ended, or has been silent for STALE_SECONDS where this process cannot see it.

    A lock that was copied here, together with the folder of its holder, is stale too.
    """
    if holder and is_copy(path, holder):
        return True
    if holder and holder.is_here:
        return not holder.is_running
    return _silence(path) > STALE_SECONDS


def is_copy(path: Path, holder: Holder) -> bool:
    """Return True if the lock came here as a copy of a lock that is still where it was made."""
    original = original_of(path, holder.folder)
    return original is not None and read(original) == holder


def replace(path: Path, seen: Holder | None, own: Holder | None) -> bool:
    """Take the lock over from the stale holder that was seen. Return False if it is another's by now, or another is about to take it."""
    with _right_to_change(path, seen) as is_granted:
        # A lock without a name has no token to compare. It may be one that is being made at this moment: so look again.
        if not is_granted or not is_stale(path, seen):
            return False
        path.unlink(missing_ok=True)
        return create(path, own)


def release(path: Path, own: Holder) -> None:
    """Remove the lock if `own` still holds it."""
    with _right_to_change(path, own) as is_granted:
        if is_granted:
            path.unlink(missing_ok=True)


def beat(path: Path) -> None:
    """Give a heartbeat. Raises FileNotFoundError if there is no lock."""
    os.utime(path)


def last_beat(path: Path) -> float | None:
    """Return when the holder gave its last heartbeat, in seconds of the file system's clock; None if there is no lock."""
    try:
        with path.open("rb") as lock:  # NFS asks its server when a file is opened, and may answer from a cache otherwise.
            return os.fstat(lock.fileno()).st_mtime
    except FileNotFoundError:
        return None


def _silence(path: Path) -> float:
    """Return the seconds since the last heartbeat; 0 if there is no lock. A new file shows the clock: those of machines differ."""
    beat = last_beat(path)
    if beat is None:
        return 0.0
    with NamedTemporaryFile(dir=path.parent, prefix=f"{path.name}.clock-") as now:
        return os.fstat(now.fileno()).st_mtime - beat


@contextmanager
def _right_to_change(path: Path, seen: Holder | None) -> Iterator[bool]:
    """Keep other processes from changing the lock inside the block. Yield False if one does so already, or if it is not as seen."""
    right = path.with_name(f"{path.name}.{seen.token if seen else 'unreadable'}")
    if not take(right, None):
        yield False
        return
    try:
        yield read(path) == seen
    finally:
        right.unlink(missing_ok=True)
