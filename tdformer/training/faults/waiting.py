"""Waits for data and checkpoints that cannot be read now: how long, who is told meanwhile, and what ends the wait."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from data_pipelines.storage.patience import Patience, never
from tdformer.config import RunConfig
from tdformer.distributed.context import DistContext


def patience_of(config: RunConfig, context: DistContext, should_stop: Callable[[], object] = never) -> Patience:
    """Return the patience of a run. While a rank waits, its watchdog knows that it lives, and a stop signal ends the wait at once."""
    progress = context.watchdog.progress
    return Patience(
        seconds=60 * config.data.patience_minutes,
        should_stop=lambda: bool(should_stop()),
        phase=partial(progress.slow_phase, "waiting for data"),
        alive=progress.alive,
    )
