"""Locks files, also on file systems that have no locks, such as Lustre mounted without flock, and some NFS.

There a name in the kernel's abstract socket namespace takes the place of the lock. It keeps out other processes of this machine, and the
kernel frees it when its process dies, as it does with a lock. Where processes of other machines have to be kept out too, a file beside the
lock names the machine that holds it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY)
"""Errors that say that the file system has no locks. Others say that it has some, or that it does not work."""
BY_ANOTHER = (errno.EWOULDBLOCK, errno.EACCES)
POLL_SECONDS = 0.05


class HeldError(Exception):
    """Another process holds the lock. The text is a clause about it where more is known, else empty."""


@contextmanager
def locked(path: Path, *, wait: bool, across_machines: bool = False) -> Iterator[None]:
    """Hold an exclusive lock on the file `path`, which is made if needed.

    wait: until another process has freed it. Otherwise HeldError is raised. Raises OSError if the file cannot be opened or locked.
    across_machines: processes of other machines may come too. They are kept out wherever the file system has locks; where it has none,
    this is possible only with wait=False.
    """
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if error.errno in BY_ANOTHER and not wait:
                raise HeldError from None
            if error.errno not in NO_LOCKS:
                raise
        else:
            yield
            return
        with closing(_locked_on_this_machine(path, wait)), _noted(path) if across_machines else nullcontext():
            yield


def _locked_on_this_machine(path: Path, wait: bool) -> socket.socket:
    """Return a socket that is bound to a name made of the path. It holds the lock until it is closed."""
    name = b"\0tdformer-lock-" + hashlib.sha256(os.fsencode(path.resolve())).hexdigest().encode()
    holder = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    while True:
        try:
            holder.bind(name)
            return holder
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        if not wait:
            holder.close()
            raise HeldError
        time.sleep(POLL_SECONDS)


@contextmanager
def _noted(path: Path) -> Iterator[None]:
    """Note this machine beside the lock. Raises HeldError if another one is noted. A note of this machine is a dead process's."""
    note, own = path.with_name(f"{path.name}.machine"), {"machine": _this_machine(), "host": socket.gethostname(), "pid": os.getpid()}
    try:
        descriptor = os.open(note, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        _refuse_other_machine(note, own["machine"])
        descriptor = os.open(note, os.O_WRONLY | os.O_TRUNC)
    try:
        with os.fdopen(descriptor, "w") as file:
            json.dump(own, file)
        yield
    finally:
        note.unlink(missing_ok=True)


def _refuse_other_machine(note: Path, machine: object) -> None:
    try:
        noted = json.loads(note.read_bytes())
        held_by = f"process {noted['pid']} on {noted['host']}"
        is_own = noted["machine"] == machine
    except (ValueError, KeyError, TypeError):
        held_by, is_own = "a process of some machine", False
    if not is_own:
        raise HeldError(f"{held_by} holds it; if that process is gone, remove {note}")


def _this_machine() -> str:
    """Name the processes that see the same abstract socket names: those of one boot of a machine, or of one container on it."""
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/net')}"
