"""Starts loader processes safely, and makes sure that they end with the training process."""

from __future__ import annotations

import atexit
import multiprocessing
import signal
import threading
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext

import torch

from data_pipelines.processes import exit_with_parent, use_short_socket_folder

STOP_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}


def worker_context() -> BaseContext:
    """Make the context in which loader processes are forked from a helper process that has imported what they need.

    They are not forked from the training process. When loaders start, it has threads (gloo, MLflow), and a fork would copy their
    locks in whatever state they are.
    """
    atexit.register(_kill_workers)
    use_short_socket_folder()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["data_pipelines.loading.micro_batches"])
    # Ctrl-C and a scheduler's signals reach every process of the run, but only the training process shall react to them. It then
    # ends its workers. The helpers start with these signals blocked, and the workers that they fork inherit that.
    for start_helper in (resource_tracker.ensure_running, forkserver.ensure_running):
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            start_helper()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    return context


def initialise_worker(owner: int, worker: int) -> None:
    """Let a worker compute on one core, and end with the training process `owner`."""
    threading.Thread(target=exit_with_parent, args=(owner,), daemon=True).start()
    torch.set_num_threads(1)


def _kill_workers() -> None:
    """Kill loader processes at exit. After an exception they may still run, and multiprocessing would wait for them for ever.

    It ends its children by SIGTERM, which they block.
    """
    for child in multiprocessing.active_children():
        child.kill()
