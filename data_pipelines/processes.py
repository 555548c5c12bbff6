"""Runs jobs in several processes of this machine. No process stays behind, and none is waited for after its death."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing import process, util
from typing import Any, TypeVar

import psutil

from data_pipelines.errors import UnavailableError, UserError

Shared = TypeVar("Shared")
Job = TypeVar("Job")
Result = TypeVar("Result")

LONGEST_SOCKET_FOLDER = 64
"""Bytes that a folder's path may have. multiprocessing appends some 32, and Linux takes 107 in all."""

BUS_ERROR = (
    "a process was ended by a bus error: a file that it maps into memory cannot be read now (its disk failed, or it was cut off); the same "
    "command goes on."
)

_pickled: bytes = b""
"""The argument that all jobs of a worker process share. It is sent once per process, not once per job."""
_shared: Any = None
"""This is that argument, from the first job on. Unpickling may open files, and only the error of a job reaches the owner."""


def map_unordered(function: Callable[[Shared, Job], Result], shared: Shared, jobs: Sequence[Job], processes: int) -> Iterator[Result]:
    """Yield function(shared, job) for every job, in the order in which they finish. One process means: no other is started.

    Raises what a job raises, and ends the other jobs. Raises UserError if a process is killed, and UnavailableError if that was because
    a file that it had mapped into memory cannot be read.
    """
    processes = min(processes, len(jobs))
    if processes <= 1:
        yield from (function(shared, job) for job in jobs)
        return
    use_short_socket_folder()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", function.__module__])  # imported once, and not by each process
    pool = ProcessPoolExecutor(processes, context, initializer=_initialise_worker, initargs=(os.getpid(), pickle.dumps(shared)))
    children: list[multiprocessing.process.BaseProcess] = []
    try:
        futures = [pool.submit(_call, function, job) for job in jobs]
        children += pool._processes.values()
        for done in as_completed(futures):
            yield done.result()
    except BrokenProcessPool:
        if any(child.exitcode == -signal.SIGBUS for child in children):
            raise UnavailableError(BUS_ERROR) from None
        raise UserError("a process was killed, most likely because memory ran out; use fewer --processes.") from None
    except BaseException:
        for child in multiprocessing.active_children():
            child.kill()  # nobody needs the result of a job under way
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _initialise_worker(owner: int, pickled: bytes) -> None:
    global _pickled
    _pickled = pickled
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal reaches the owner too, which then ends its workers
    threading.Thread(target=exit_with_parent, args=(owner,), daemon=True).start()


def _call(function: Callable[[Any, Job], Result], job: Job) -> Result:
    global _shared, _pickled
    if _shared is None:
        _shared, _pickled = pickle.loads(_pickled), b""
    return function(_shared, job)


def use_short_socket_folder() -> None:
    """Give multiprocessing a folder with a short path for its sockets, if the folder for temporary files has a long one.

    The path of a socket is limited to about a hundred bytes. Raises UserError if there is no other folder.
    """
    settings, usual = process.current_process()._config, tempfile.gettempdir()  # type: ignore[attr-defined]
    if "tempdir" in settings or len(os.fsencode(usual)) <= LONGEST_SOCKET_FOLDER:
        return
    short = next((folder for folder in ("/tmp", "/var/tmp", "/dev/shm") if os.access(folder, os.W_OK | os.X_OK)), None)
    if short is None:
        raise UserError(f"the folder for temporary files, {usual}, has too long a path for sockets; set TMPDIR to a shorter one.")
    settings["tempdir"] = tempfile.mkdtemp(prefix="pymp-", dir=short)
    util.Finalize(None, shutil.rmtree, args=(settings["tempdir"],), kwargs={"ignore_errors": True}, exitpriority=-100)


def exit_with_parent(parent: int) -> None:
    """Wait until the process `parent` has ended, however it ended, and then end this process too."""
    while _is_running(parent):
        time.sleep(1.0)
    os._exit(1)


def _is_running(process: int) -> bool:
    """False also for a zombie: a process that has ended, but whose exit code nobody has read."""
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(process).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    return False
