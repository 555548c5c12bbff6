"""Starts the processes of a run on this machine, passes signals on to them, and ends when they have ended.

It is used in place of torchrun for three reasons. It returns the exit code of the process that failed, where torchrun always returns 1.
After a stop signal it waits as long as a checkpoint takes, where torchrun kills after 30 s. And it imports no torch.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any

from launch.exit_codes import EXIT_STOPPED
from tdformer.distributed.launch_environment import OWN_LAUNCHER, free_port, without_launcher
from tdformer.distributed.stop_signals import heeded
from tdformer.distributed.watchdog.diagnosis import EXIT_PEER_LOST

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
GRACE_SECONDS = 30.0
"""The time for the other processes to end by themselves after one has failed. Their watchdogs need less time."""
POLL_SECONDS = 0.1


def run_processes(count: int, arguments: Sequence[str]) -> int:
    """Run `tdformer <arguments>` in `count` processes, and return the exit code of the first process that failed, or 0.

    A process that signal n killed has exit code 128 + n. A process that ended because another one was lost is not the first.
    """
    port = free_port()
    children = [_start(rank, count, port, arguments) for rank in range(count)]
    with _signals_passed_on(children):
        return _wait(children)


def run_command(arguments: Sequence[str], output: IO[Any] | None = None) -> int:
    """Run `tdformer <arguments>` as a step of another command, and return its exit code. EXIT_STOPPED after any stop signal.

    output: takes the place of standard output.
    """
    command = [sys.executable, "-m", "launch", *arguments]
    child = subprocess.Popen(command, stdout=output, preexec_fn=_stop_with_parent)
    with _signals_passed_on([child]) as passed_on:
        code = child.wait()
    return EXIT_STOPPED if passed_on else code if code >= 0 else 128 - code


@contextmanager
def _signals_passed_on(children: Sequence[subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """Pass stop signals on to processes, and kill those that are left at the end. Yields the list of signals that came."""
    came: list[int] = []

    def pass_on(number: int, frame: object) -> None:
        came.append(number)
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    previous = {number: signal.signal(number, pass_on) for number in heeded(STOP_SIGNALS)}
    try:
        yield came
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
        **without_launcher(os.environ),
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
    """Ask Linux, in the child, to send SIGTERM when the launcher dies. Otherwise the child would train on unnoticed."""
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
                _resume_stopped(children)
            failed = now
    # A process that still runs waits for a dead rank. The caller kills it.
    if set(failed.values()) <= {EXIT_PEER_LOST}:
        failed = _failures(children)
    return _report(failed, [child.returncode for child in children])


def _failures(children: list[subprocess.Popen[bytes]]) -> dict[int, int]:
    """Return the exit codes of failed processes by rank."""
    return {rank: child.returncode for rank, child in enumerate(children) if child.poll()}


def _resume_stopped(children: list[subprocess.Popen[bytes]]) -> None:
    """Continue processes that were stopped by SIGSTOP. Without it they could not end."""
    for child in children:
        if child.poll() is None:
            child.send_signal(signal.SIGCONT)


def _report(failed: dict[int, int], codes: list[int | None]) -> int:
    """Return the exit code for all. Print how a process ended that could not print it itself, which only its parent knows."""
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
