"""A file that one process at a time holds, on file systems shared by several machines, where flock cannot be relied on.

    lock.json             who holds it; its modification time is the holder's last sign of life
    lock.json.<token>     there while somebody removes or replaces the lock with that token

The lock is made with O_EXCL. An existing one is changed only by who made, with O_EXCL too, the file that carries its token, and who
then has found that token in it once more: of two that find the same abandoned lock, one gets it.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from tdformer.distributed.launch_environment import OWN_LAUNCHER
from tdformer.rundir.run_dir import RunDir

CLOCK_NAME = ".clock-"
BEAT_SECONDS = 10.0
STALE_SECONDS = 60.0
"""A holder on another machine that has given no sign of life for so long is taken for dead."""


@dataclass(frozen=True)
class Holder:
    """A process, found again by anybody who shares its file system."""

    host: str
    machine: str
    """Which process table `pid` means: that of one boot of one machine, or of a container there."""
    pid: int
    started: str
    """When the process started: a pid may be another process later."""
    launcher: int
    launcher_started: str
    """Our own launcher, which tells it to stop if it dies; 0 and "" under any other."""
    since: str
    token: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"

    @property
    def is_here(self) -> bool:
        return self.machine == this_machine()

    @property
    def is_running(self) -> bool:
        """Only if it is here."""
        return start_of(self.pid) == self.started

    @property
    def is_ending(self) -> bool:
        """Whether its launcher is gone, so that it was told to stop. Only if it is here."""
        return bool(self.launcher_started) and start_of(self.launcher) != self.launcher_started


def this_process() -> Holder:
    pid, since = os.getpid(), time.strftime("%Y-%m-%d %H:%M:%S %z")
    launcher = os.getppid() if OWN_LAUNCHER in os.environ else 0
    launcher_started = start_of(launcher) if launcher else ""
    return Holder(socket.gethostname(), this_machine(), pid, start_of(pid), launcher, launcher_started, since, secrets.token_hex(8))


def this_machine() -> str:
    if sys.platform == "linux":
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    return socket.gethostname()


def start_of(pid: int) -> str:
    """When a process of this machine started, in whatever unit; empty if it has ended."""
    with suppress(psutil.NoSuchProcess, OSError, IndexError):
        if psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            if sys.platform == "linux":  # clock ticks since the boot: unlike psutil's time of day they never change
                return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
            return str(psutil.Process(pid).create_time())
    return ""


def create(path: Path, holder: Holder) -> bool:
    """Whether the lock was free, and is the holder's now."""
    return _make(path, json.dumps(asdict(holder)))


def read(path: Path) -> Holder | None:
    """Who holds the lock; None if there is none, or if it cannot be read (its holder died while making it)."""
    try:
        return Holder(**json.loads(path.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def is_held(run_dir: RunDir) -> bool:
    """Whether a process trains this run. Looked at only: writes nothing, unlike `age`, and goes by this machine's clock."""
    path = run_dir.lock
    try:
        holder = read(path)
        if holder and holder.is_here:
            return holder.is_running
        return time.time() - path.stat().st_mtime < STALE_SECONDS
    except OSError:
        return False


def age(path: Path, folder: Path) -> float:
    """Seconds since the holder's last sign of life, by the clock of the file system: those of machines differ. Infinite without a lock."""
    probe = folder / f"{CLOCK_NAME}{socket.gethostname()}-{os.getpid()}"
    try:
        with path.open("rb") as lock:  # opening makes NFS ask its server
            probe.touch()
            return probe.stat().st_mtime - os.fstat(lock.fileno()).st_mtime
    except FileNotFoundError:
        return math.inf
    finally:
        probe.unlink(missing_ok=True)


def beat(path: Path) -> None:
    """A sign of life."""
    os.utime(path)


def replace(path: Path, old: Holder | None, new: Holder) -> bool:
    """Take the lock over from a holder that is dead. Whether this process got it."""
    with _changing(path, old) as is_mine:
        if is_mine:
            partial = path.with_name(f"{path.name}.{new.token}.partial")
            partial.write_text(json.dumps(asdict(new)))
            partial.replace(path)
    return is_mine and read(path) == new


def release(path: Path, holder: Holder) -> None:
    """Give the lock back, if it is still the holder's."""
    with _changing(path, holder) as is_mine:
        if is_mine:
            path.unlink(missing_ok=True)


@contextmanager
def _changing(path: Path, holder: Holder | None) -> Iterator[bool]:
    """Inside, no one else changes the lock of this holder. False if someone else does so right now, or has done so."""
    claim = path.with_name(f"{path.name}.{holder.token if holder else 'unreadable'}")
    if _age_of(claim) > STALE_SECONDS:
        claim.unlink(missing_ok=True)  # who made it died at once; it takes milliseconds
    if not _make(claim, ""):
        yield False
        return
    try:
        yield path.exists() and read(path) == holder
    finally:
        claim.unlink(missing_ok=True)


def _age_of(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _make(path: Path, text: str) -> bool:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return False
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
    except OSError:
        path.unlink(missing_ok=True)  # a full disk must not leave a lock of nobody
        raise
    return True
