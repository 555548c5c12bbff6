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

from tdformer.launchers import free_port

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
GRACE_SECONDS = 30.0
"""How long the others may take to end by themselves after one process has failed."""
POLL_SECONDS = 0.1


def run_processes(count: int, arguments: Sequence[str]) -> int:
    """Run `tdformer <arguments>` in `count` processes and return the exit code of the first that failed, or 0.

    A process killed by signal n counts as exit code 128 + n.
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
    }
    return subprocess.Popen([sys.executable, "-m", "launch", *arguments], env=environment, preexec_fn=_stop_with_parent)


def _stop_with_parent() -> None:
    """In the child: if the launcher is killed, be told to stop instead of training on, unseen (Linux)."""
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _wait(children: list[subprocess.Popen[bytes]]) -> int:
    deadline, first_failure = float("inf"), 0
    while any(child.poll() is None for child in children):
        time.sleep(POLL_SECONDS)
        if not first_failure and (first_failure := _failure(children)):
            deadline = time.monotonic() + GRACE_SECONDS
        if time.monotonic() > deadline:
            break  # the caller's finally kills what still hangs on a dead peer
    return first_failure or _failure(children)


def _failure(children: list[subprocess.Popen[bytes]]) -> int:
    """The exit code of the first child, by rank, that has failed; a killed one first, as it brought down the others."""
    codes = [(rank, child.returncode) for rank, child in enumerate(children) if child.returncode]
    for rank, code in codes:
        if code < 0:
            name = signal.Signals(-code).name
            print(f"error: rank {rank} was killed by {name}; if that was SIGKILL, the machine may be out of memory.", file=sys.stderr)
            return 128 - code
    return codes[0][1] if codes else 0
