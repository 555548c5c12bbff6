"""TODO."""

from __future__ import annotations

import atexit
import multiprocessing
import signal
import threading
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext

import torch

from data_pipelines.processes import end_with

STOP_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}


def _worker_context() -> BaseContext:
    """Workers are forked from a helper process that has imported what they need.

    Not from the training process: by the time that loaders start it has threads (gloo, MLflow) whose locks a fork would copy.
    """
    atexit.register(_kill_workers)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["data_pipelines.loading.micro_batches"])
    # A terminal's Ctrl-C and a scheduler's signals reach every process of the run. Stopping is for the training process, which
    # then ends its workers: its helpers start with these signals blocked, and hand that on to the workers that they fork.
    for start_helper in (resource_tracker.ensure_running, forkserver.ensure_running):
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            start_helper()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    return context


def _kill_workers() -> None:
    """After an exception loaders may not have been closed. multiprocessing would then wait for workers that block its SIGTERM."""
    for child in multiprocessing.active_children():
        child.kill()


def _prepare_worker(owner: int, worker: int) -> None:
    """A worker computes on one core, and does not outlive the training process."""
    threading.Thread(target=end_with, args=(owner,), daemon=True).start()
    torch.set_num_threads(1)
