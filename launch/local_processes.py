"""Start the processes of a run on this machine, pass signals on, and end together.

Our own rather than torchrun's: it keeps the exit code of the process that failed (torchrun always gives 1), waits
as long as a checkpoint takes after a stop signal (torchrun kills after 30 s), and imports no torch.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from tdformer.distributed.launch_environment import OWN_LAUNCHER, free_port
from tdformer.distributed.watchdog.diagnosis import EXIT_PEER_LOST

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
GRACE_SECONDS = 30.0
"""How long the other processes may take to end by themselves after one has failed. Their watchdogs need less."""
POLL_SECONDS = 0.1


def run_processes(count: int, arguments: Sequence[str]) -> int:
    """Run `tdformer <arguments>` in `count` processes and return the exit code of the first that failed, or 0.

    A process killed by signal n counts as exit code 128 + n. One that only left because another was lost is not the first.
    """
    port = free_port()
    children = [_start(rank, count, port, arguments) for rank in range(count)]

    def pass_on(number: int, frame: object) -> None:
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    previous = {number: signal.signal(number, pass_on) for number in STOP_SIGNALS}
    try:
        return _wait(children)
    finally:
        for child in children:
            if child.poll() is None:
                child.kill()
        for number, handler in previous.items():
            signal.signal(number, handler)


def _start(rank: int, count: int, port: int, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    threads = max((os.cpu_count() or 1) // count, 1)
    environment = {
        "OMP_NUM_THREADS": str(threads),
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        OWN_LAUNCHER: "1",
    }
    return subprocess.Popen([sys.executable, "-m", "launch", *arguments], env=environment, preexec_fn=_stop_with_parent)


def _stop_with_parent() -> None:
    """In the child: if the launcher is killed, be told to stop instead of training on, unseen (Linux)."""
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _wait(children: list[subprocess.Popen[bytes]]) -> int:
    deadline = float("inf")
    failed: dict[int, int] = {}
    while any(child.poll() is None for child in children) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        if set(failed.values()) <= {EXIT_PEER_LOST} and (now := _failures(children)) != failed:
            if not failed:
                deadline = time.monotonic() + GRACE_SECONDS
                _wake(children)
            failed = now
    # What still runs, hangs on a dead peer: the caller's finally kills it.
    if set(failed.values()) <= {EXIT_PEER_LOST}:
        failed = _failures(children)
    return _tell(failed, [child.returncode for child in children])


def _failures(children: list[subprocess.Popen[bytes]]) -> dict[int, int]:
    """Exit codes by rank, without those of success."""
    return {rank: child.returncode for rank, child in enumerate(children) if child.poll()}


def _wake(children: list[subprocess.Popen[bytes]]) -> None:
    """A process that was stopped (SIGSTOP) can leave only if it is continued."""
    for child in children:
        if child.poll() is None:
            child.send_signal(signal.SIGCONT)


def _tell(failed: dict[int, int], codes: list[int | None]) -> int:
    """The exit code for all. Says what only the parent of a process knows: how it ended without a word of its own."""
    first = min(failed.items(), key=lambda item: (item[1] >= 0, item[1] == EXIT_PEER_LOST, item[0]), default=None)
    if first is None:
        return 0
    rank, code = first
    if code < 0:
        memory = "; the machine may be out of memory" if -code == signal.SIGKILL else ""
        print(f"error: rank {rank} was killed by {signal.Signals(-code).name}{memory}.", file=sys.stderr)
        return 128 - code
    if code == EXIT_PEER_LOST and 0 in codes:
        print(f"error: rank {codes.index(0)} ended before the others.", file=sys.stderr)
    return code
