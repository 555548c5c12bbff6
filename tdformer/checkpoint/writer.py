"""CheckpointWriter: decides when a training state is saved, and saves it while training goes on."""

from __future__ import annotations

import threading
import time

from tdformer.checkpoint import store
from tdformer.checkpoint.format import CheckpointError
from tdformer.checkpoint.store import RetentionPolicy
from tdformer.checkpoint.train_state import Snapshot
from tdformer.config import CheckpointConfig
from tdformer.distributed.context import DistContext
from tdformer.rundir.run_dir import RunDir
from tdformer.rundir.run_lock import MayWrite


class CheckpointWriter:
    """Writes checkpoints on rank 0 in a thread: training goes on as soon as the state is copied to memory.

    Methods that are collective say so. The others may be called on any rank.
    """

    def __init__(self, run_dir: RunDir, config: CheckpointConfig, config_yaml: str, context: DistContext, may_write: MayWrite) -> None:
        """may_write: HeldLock.may_write, which rank 0 asks before it writes."""
        self.run_dir, self.config, self.config_yaml, self.context, self.may_write = run_dir, config, config_yaml, context, may_write
        self.retention = RetentionPolicy(config.keep_last, config.keep_every)
        self._thread: threading.Thread | None = None
        self._failure: CheckpointError | None = None
        self._last = time.monotonic()

    def is_due(self, step: int) -> bool:
        """Tell whether checkpoint.every_steps asks for a save after this step. The answer is the same on all ranks."""
        every = self.config.every_steps
        return every is not None and step % every == 0

    def interval_is_over(self) -> bool:
        """Tell whether every_minutes have passed since the last save. Clocks differ, so only rank 0 ever says True."""
        minutes = self.config.every_minutes
        return minutes is not None and self.context.is_rank0 and time.monotonic() - self._last > 60 * minutes

    def save(self, snapshot: Snapshot, *, is_best: bool) -> None:
        """Begin to save rank 0's snapshot. The save before must be finished."""
        self._last = time.monotonic()
        if self.context.is_rank0:
            self._thread = threading.Thread(target=self._write, args=(snapshot, is_best), name="checkpoint")
            self._thread.start()
        if not self.config.background:
            self.close()

    def finish(self, *, raising: bool = False) -> str | None:
        """Wait for the save that is under way. Return the disk's error as a sentence, or None. Collective.

        Raises CheckpointError on all ranks instead, if `raising` or if checkpoint.on_failure is stop.
        """
        self.close()
        failure, self._failure = self._failure, None
        if raising or self.config.on_failure == "stop":
            self.context.raise_on_all_ranks(failure)
        return self.context.broadcast(str(failure) if failure else None)

    def close(self) -> None:
        """Wait for the save that is under way."""
        if self._thread is not None:
            with self.context.watchdog.progress.slow_phase("saving"):
                self._thread.join()
            self._thread = None

    def _write(self, snapshot: Snapshot, is_best: bool) -> None:
        try:
            store.save(self.run_dir, snapshot, self.config_yaml, is_best=is_best, retention=self.retention, may_write=self.may_write)
        except CheckpointError as error:
            self._failure = error
        except Exception as error:  # in a thread it would be lost
            self._failure = CheckpointError(f"the checkpoint of step {snapshot.train_state.step} cannot be written ({error!r}).")
