"""When the training state is saved, and how little training waits for it."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from tdformer.config import CheckpointConfig
from tdformer.ranks import Ranks
from tdformer.training import checkpoints
from tdformer.training.checkpoints import CheckpointError, Keep, TrainState


class Saver:
    """Writes checkpoints on rank 0, in a thread: training goes on as soon as the state is copied to memory.

    The methods that are collective say so; the others may be called on any rank.
    """

    def __init__(self, root: Path, config: CheckpointConfig, config_yaml: str, ranks: Ranks) -> None:
        self.root, self.config, self.config_yaml, self.ranks = root, config, config_yaml, ranks
        self.keep = Keep(config.keep_last, config.keep_every)
        self._thread: threading.Thread | None = None
        self._failure: CheckpointError | None = None
        self._last = time.monotonic()

    def is_due(self, step: int) -> bool:
        every = self.config.every_steps
        return every is not None and step % every == 0

    def time_is_up(self) -> bool:
        """Whether every_minutes have passed since the last save. Clocks differ: only what the ranks agree on may count."""
        minutes = self.config.every_minutes
        return minutes is not None and self.ranks.is_first and time.monotonic() - self._last > 60 * minutes

    def save(self, state: TrainState, *, is_best: bool) -> None:
        """Begin to save; rank 0's `state` counts. The save before must be finished."""
        self._last = time.monotonic()
        if self.ranks.is_first:
            self._thread = threading.Thread(target=self._write, args=(state, is_best), name="checkpoint")
            self._thread.start()
        if not self.config.background:
            self.close()

    def finish(self, *, raising: bool = False) -> str | None:
        """Wait for the save that is under way. Returns what the disk had against it, or None. Collective.

        Raises CheckpointError instead, on all ranks, if `raising` or where checkpoint.on_failure says so.
        """
        self.close()
        failure, self._failure = self._failure, None
        if raising or self.config.on_failure == "stop":
            self.ranks.raise_together(failure)
        return self.ranks.from_first(str(failure) if failure else None)

    def close(self) -> None:
        """Wait for the save that is under way."""
        if self._thread is not None:
            with self.ranks.watchdog.progress.slow_phase("saving"):
                self._thread.join()
            self._thread = None

    def _write(self, state: TrainState, is_best: bool) -> None:
        try:
            checkpoints.save(self.root, state, self.config_yaml, is_best=is_best, keep=self.keep)
        except CheckpointError as error:
            self._failure = error
        except Exception as error:  # in a thread it would be lost
            self._failure = CheckpointError(f"the checkpoint of step {state.position.step} cannot be written ({error!r}).")
