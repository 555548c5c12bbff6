"""The process that holds a lock, described so that any process on the same file system can find it again."""

from __future__ import annotations

import os
import secrets
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tdformer.distributed.launch_environment import OWN_LAUNCHER

HIDDEN = "hidden"


@dataclass(frozen=True)
class Holder:
    """A process on some machine.

    `machine` names the process table in which `pid` counts: one boot of one machine, or one container on it. Host names do not: two
    machines may share one. `started` tells the process from a later one with the same pid. `launcher` is the pid of
    `tdformer train --processes`, which stops its ranks if it dies; it is 0, and its start "", under any other launcher. `since` is
    the local time at which this record was made. `token` is random. `folder` is the absolute path of the folder that is locked.
    """

    host: str
    machine: str
    pid: int
    started: str
    launcher: int
    launcher_started: str
    since: str
    token: str
    folder: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"

    @property
    def is_here(self) -> bool:
        """True if this process can see whether the holder runs."""
        return self.machine == this_machine()

    @property
    def is_running(self) -> bool:
        """True if the process runs. Means nothing unless is_here."""
        return start_of(self.pid) in (self.started, HIDDEN)

    @property
    def is_ending(self) -> bool:
        """True if the launcher of the process has died, so that the process was told to stop. Means nothing unless is_here."""
        return bool(self.launcher_started) and start_of(self.launcher) not in (self.launcher_started, HIDDEN)


def this_process(folder: Path) -> Holder:
    """Describe this process as the holder of a folder, with a new token."""
    pid, since = os.getpid(), time.strftime("%Y-%m-%d %H:%M:%S %z")
    launcher = os.getppid() if OWN_LAUNCHER in os.environ else 0
    launcher_started = start_of(launcher) if launcher else ""
    process = (socket.gethostname(), this_machine(), pid, start_of(pid), launcher, launcher_started)
    return Holder(*process, since, secrets.token_hex(8), str(folder.resolve()))


def this_machine() -> str:
    """Name the process table of this process (see Holder.machine)."""
    if sys.platform == "linux":
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    return socket.gethostname()


def start_of(pid: int) -> str:
    """Return when a process of this machine started, in any unit; "" if it has ended, HIDDEN if this user may not see it."""
    with suppress(psutil.Error, OSError, IndexError):
        if psutil.Process(pid).status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return ""
        if sys.platform == "linux":  # Clock ticks since the boot never change. The time of day, which psutil gives, may be set anew.
            return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19].decode()
        return str(psutil.Process(pid).create_time())
    return HIDDEN if _belongs_to_another_user(pid) else ""


def _belongs_to_another_user(pid: int) -> bool:
    """Ask the kernel, which answers even where /proc is mounted with hidepid and shows each user only their own processes."""
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return False
