"""Work shared out over processes of this machine: results as they come, no process left behind, no wait for one that died."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from typing import Any, TypeVar

import psutil

from data_pipelines.errors import UserError

Shared = TypeVar("Shared")
Job = TypeVar("Job")
Result = TypeVar("Result")

_shared: Any = None
"""In a worker: what all jobs have in common, sent once."""


def each(function: Callable[[Shared, Job], Result], shared: Shared, jobs: Sequence[Job], processes: int) -> Iterator[Result]:
    """function(shared, job) for every job, in the order in which they are done. With one process it is this one.

    Raises what a job raises; the others are then ended. Raises UserError if a process is killed.
    """
    processes = min(processes, len(jobs))
    if processes <= 1:
        yield from (function(shared, job) for job in jobs)
        return
    context = multiprocessing.get_context("forkserver")
    pool = ProcessPoolExecutor(processes, context, initializer=_prepare, initargs=(os.getpid(), shared))
    try:
        for done in as_completed([pool.submit(_call, function, job) for job in jobs]):
            yield done.result()
    except BrokenProcessPool:
        raise UserError("a process was killed, most likely because memory ran out; use fewer --processes.") from None
    except BaseException:
        for child in multiprocessing.active_children():
            child.kill()  # what they have in hand is not wanted any more
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _prepare(owner: int, shared: Any) -> None:
    global _shared
    _shared = shared
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches the owner too, which then ends its processes
    threading.Thread(target=end_with, args=(owner,), daemon=True).start()


def _call(function: Callable[[Any, Job], Result], job: Job) -> Result:
    return function(_shared, job)


def end_with(owner: int) -> None:
    """End this process soon after its owner has gone, however it went."""
    while _runs(owner):
        time.sleep(1.0)
    os._exit(1)


def _runs(process: int) -> bool:
    """A process that has ended and that nobody has asked for its exit code yet does not."""
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(process).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    return False
