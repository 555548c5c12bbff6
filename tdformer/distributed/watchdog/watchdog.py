"""A thread on every rank that notices when another rank died or any hangs, and then ends this process, whatever its main thread does."""

from __future__ import annotations

import faulthandler
import math
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from tdformer.distributed.launch_environment import OWN_LAUNCHER
from tdformer.distributed.watchdog import stacks
from tdformer.distributed.watchdog.posts import Address, Post
from tdformer.distributed.watchdog.progress import Progress
from tdformer.distributed.watchdog.verdict import EXIT_PEER_LOST, Limits, Verdict

BEAT_SECONDS = 1.0
SECONDS_TO_LEAVE = 8.0
"""After a rank died: how long the main threads of the others have to leave by themselves, closing what is open."""
SECONDS_TO_CLOSE = 6.0
"""For closing the MLflow run, where the main thread cannot any more. All of them together stay below the launcher's GRACE_SECONDS."""
SECONDS_TO_WRITE = 5.0
"""For stack traces; a hang may be the file system's."""
SECONDS_BEFORE_LAST_RESORT = 30.0
"""Above the limit."""


class Watchdog:
    """Of one rank. Does nothing until `start`; until `configure` it has the default limits and nowhere to write.

    `progress` is to be moved by the main thread.
    """

    def __init__(self, rank: int = 0) -> None:
        self.rank, self.progress = rank, Progress()
        self.configure(Limits())
        self._stopping, self._leaving, self._known, self._told_others = (threading.Event() for _ in range(4))
        self._farewell: tuple[str, bool] = ("", False)
        self._accusation: Verdict | None = None
        self._verdict: Verdict | None = None
        self._telling, self._has_told = threading.Lock(), False
        self._post: Post | None = None
        self._hub: Address | None = None

    def configure(
        self,
        limits: Limits,
        stacks_folder: Path | None = None,
        advice: Callable[[], str] = str,
        closing: Callable[[], object] = str,
    ) -> None:
        """`stacks_folder`: None for stderr. `advice` is said after what happened. `closing` is done, on the rank that speaks, if the main
        thread cannot close things any more."""
        self._limits, self._stacks, self._advice, self._closing = limits, stacks_folder, advice, closing

    # --- called by the main thread -----------------------------------------------------------------------------

    def start(self, post: Post, hub: Address | None = None) -> None:
        """`hub`: where rank 0 is, for the others."""
        self._post, self._hub = post, hub
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    def accuse_self(self, reason: str) -> None:
        """End the run on all ranks. Only rank 0 may call this, from any thread."""
        self._accusation = Verdict("failed", (self.rank,), reason)
        if self._post:
            self._post.wake()

    def blame(self, seconds: float) -> bool:
        """Whether the others do not answer because the run ends, if that is known within `seconds`. Then says why."""
        if self._post is None or not self._known.wait(seconds):
            return False
        self._leaving.set()
        self._tell()
        if self._speaks() and self.rank:
            _within(SECONDS_TO_CLOSE, self._closing)  # rank 0, which has it open, cannot
        return True

    def leave(self, error: str = "", is_shared: bool = False) -> None:
        """The main thread is done with the other ranks, or ends with an error (is_shared: one that all ranks have)."""
        if self._post is None or self._stopping.is_set():
            return
        self._farewell = (error, is_shared)
        self._leaving.set()
        self._stopping.set()
        self._post.wake()
        self._told_others.wait(SECONDS_TO_LEAVE)

    # --- the thread --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        assert self._post is not None
        verdict = None
        while not self._stopping.is_set() and verdict is None:
            self._arm_last_resort()
            verdict = self._post.turn(self.progress.status(), self._limits, BEAT_SECONDS) or self._accusation
        faulthandler.cancel_dump_traceback_later()
        if verdict is None:
            self._post.leave(*self._farewell)
            self._told_others.set()
            return
        self._end(verdict)

    def _arm_last_resort(self) -> None:
        """If one call never lets this thread run again: faulthandler's timer needs no Python. It writes to stderr and ends the process."""
        limit = self._limits.of(self.progress.status())
        if math.isfinite(limit):
            faulthandler.dump_traceback_later(limit + min(2 * limit, SECONDS_BEFORE_LAST_RESORT), exit=True, file=sys.__stderr__ or 2)

    def _end(self, verdict: Verdict) -> NoReturn:
        assert self._post is not None
        self._verdict = verdict
        if verdict.is_hang:
            self._dump()
        self._known.set()
        self._post.pass_on(verdict)
        self._told_others.set()
        if not verdict.is_hang and self._leaving.wait(SECONDS_TO_LEAVE):
            time.sleep(SECONDS_TO_LEAVE)  # normally the process ends within it
        self._tell()
        if self._speaks():
            _within(SECONDS_TO_CLOSE, self._closing)
        os._exit(EXIT_PEER_LOST)

    def _dump(self) -> None:
        folder = self._stacks
        if folder is None or not _within(SECONDS_TO_WRITE, lambda: stacks.dump(folder, self.rank)):
            faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)

    # --- what is said ------------------------------------------------------------------------------------------

    def _tell(self) -> None:
        """What happened and how to go on: once, and on one rank of the run. The launcher knows how a process died, and what to do."""
        with self._telling:
            verdict, told = self._verdict, self._has_told
            self._has_told = True
        launched = OWN_LAUNCHER in os.environ
        if verdict is None or told or not self._speaks() or (launched and verdict.kind == "died"):
            return
        parts = [f"error: {verdict.text}; the run is ended on all ranks."]
        if verdict.is_hang and self._stacks:
            parts.append(f"Stack traces of the ranks that answered: {self._stacks}.")
        if not launched:
            _within(SECONDS_TO_WRITE, lambda: parts.append(self._advice()))
        print(*parts, file=sys.stderr, flush=True)

    def _speaks(self) -> bool:
        """Rank 0; if the others found that it is to blame, the first of them on each machine, as they do not hear of one another."""
        if self._verdict is None or self._hub is None or self._verdict.by == 0:
            return self.rank == 0
        is_with_hub = socket.gethostname() == self._hub.hostname
        return int(os.environ.get("LOCAL_RANK", 0)) == int(is_with_hub)


def _within(seconds: float, action: Callable[[], object]) -> bool:
    """Do something that may never return, or fail, where neither must matter. Returns whether it was done."""
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
