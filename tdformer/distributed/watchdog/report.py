"""The report is what a rank does before it ends because another one failed: it writes stack traces, tells the user, closes what is open."""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from tdformer.distributed.launch_environment import OWN_LAUNCHER
from tdformer.distributed.watchdog import stacks
from tdformer.distributed.watchdog.diagnosis import Diagnosis
from tdformer.distributed.watchdog.transport import Address

SECONDS_TO_CLOSE = 6.0
"""The MLflow run gets this long to be closed, where the main thread cannot do it any more."""
SECONDS_TO_WRITE = 5.0
"""Stack traces and advice get this long. They use the file system, and that may be what hangs."""


class Report:
    """One rank of the run speaks, and it speaks once. Both the main thread and the watchdog's thread may call these functions."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._server: Address | None = None
        self._telling, self._has_told = threading.Lock(), False
        self.configure()

    def configure(self, stacks_folder: Path | None = None, advice: Callable[[], str] = str, closing: Callable[[], object] = str) -> None:
        """See Watchdog.configure."""
        self._stacks, self._advice, self._closing = stacks_folder, advice, closing

    def set_server(self, server: Address | None) -> None:
        """Note where rank 0 is. Which rank speaks depends on it."""
        self._server = server

    def write_stacks(self) -> None:
        """Write this process's stack traces to the stacks folder, or to stderr if that is not possible."""
        folder = self._stacks
        if folder is None or not _within(SECONDS_TO_WRITE, lambda: stacks.dump(folder, self._rank)):
            faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)

    def tell(self, diagnosis: Diagnosis) -> None:
        """Tell the user what happened and how to go on.

        Our own launcher tells the rest: it knows how a process died, and it is what the user started.
        """
        with self._telling:
            has_told, self._has_told = self._has_told, True
        launched = OWN_LAUNCHER in os.environ
        if has_told or not self.is_speaker(diagnosis) or (launched and diagnosis.kind == "died"):
            return
        parts = [f"error: {diagnosis.text}; the run is ended on all ranks."]
        if diagnosis.is_hang and self._stacks:
            parts.append(f"Stack traces of the ranks that answered: {self._stacks}.")
        if not launched:
            _within(SECONDS_TO_WRITE, lambda: parts.append(self._advice()))
        print(*parts, file=sys.stderr, flush=True)

    def close(self, diagnosis: Diagnosis) -> None:
        """Close what the main thread has left open, on the rank that speaks."""
        if self.is_speaker(diagnosis):
            _within(SECONDS_TO_CLOSE, self._closing)

    def is_speaker(self, diagnosis: Diagnosis) -> bool:
        """Return True on the rank that speaks.

        That is rank 0. If others found that rank 0 failed, it is the first of them on each machine, because they do not hear of one
        another.
        """
        if self._server is None or diagnosis.found_by == 0:
            return self._rank == 0
        is_beside_rank0 = socket.gethostname() == self._server.hostname
        return int(os.environ.get("LOCAL_RANK", 0)) == int(is_beside_rank0)


def _within(seconds: float, action: Callable[[], object]) -> bool:
    """Run an action that may fail or never return, where the caller must go on in both cases. Returns True if it was done in time."""
    done = threading.Event()

    def work() -> None:
        try:
            action()
            done.set()
        except Exception as error:
            print(f"warning: {type(error).__name__}: {error}", file=sys.stderr)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    return done.is_set()
