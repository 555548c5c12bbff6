"""Runs the training of one process, from a configuration to a summary: what `tdformer train` does."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from data_pipelines.errors import UserError
from data_pipelines.storage.patience import SOME_PATIENCE
from tdformer.config import RunConfig
from tdformer.distributed.context import DistContext, init_distributed
from tdformer.distributed.watchdog.diagnosis import Timeouts
from tdformer.rundir import creation
from tdformer.rundir.advice import how_to_go_on, next_step
from tdformer.rundir.run_dir import RunDir
from tdformer.rundir.run_lock import HeldLock, always
from tdformer.tracking import sync
from tdformer.tracking.client import is_server
from tdformer.tracking.run_ids import read_run_id
from tdformer.training.loop import train
from tdformer.training.trainer import Outcome


def run_training(load: Callable[[], RunConfig], path: Path | None) -> tuple[bool, str | None]:
    """Join the other processes and train.

    load: reads the configuration. path: the run directory; None makes a new one. Returns whether the run was stopped before its end,
    and on rank 0 a summary for people.
    """
    with init_distributed() as context, ExitStack() as stack:
        config = context.broadcast(context.on_all_ranks(load, SOME_PATIENCE))
        context.on_all_ranks(lambda: config.training.accumulation(context.world_size))
        run_dir = context.broadcast(context.on_all_ranks(lambda: _choose(config, path) if context.is_rank0 else None))
        is_new = not run_dir.config.exists()
        hold = creation.held(run_dir, config, context.watchdog.abort)
        lock = context.on_all_ranks(lambda: stack.enter_context(hold) if context.is_rank0 else None)
        _configure_watchdog(config, run_dir, context, lock)
        try:
            outcome = train(config, run_dir, context, lock.may_write if lock else always)
        except UserError:
            stack.close()
            if context.is_rank0 and is_new:
                creation.discard_if_unused(run_dir)
            raise
        return outcome.stopped, _summary(config, run_dir, outcome, context.world_size) if context.is_rank0 else None


def _choose(config: RunConfig, path: Path | None) -> RunDir:
    return RunDir(path) if path else creation.create_next(config)


def _configure_watchdog(config: RunConfig, run_dir: RunDir, context: DistContext, lock: HeldLock | None) -> None:
    def close() -> None:
        if lock:
            if lock.is_lost:
                return  # the session that would be closed is another run's
            lock.release()
        sync.close(run_dir)

    context.watchdog.configure(
        Timeouts.from_config(config.watchdog.timeout_s, config.watchdog.slow_timeout_s),
        stacks_folder=run_dir.stacks,
        advice=lambda: how_to_go_on(run_dir, context.world_size),
        closing=close,
    )


def _summary(config: RunConfig, run_dir: RunDir, outcome: Outcome, world_size: int) -> str:
    train_state = outcome.train_state
    if outcome.stopped:
        return f"stopped at step {train_state.step}, state saved; {next_step(run_dir, world_size)}"
    rows = {
        "validation top-1": f"{train_state.metrics['top1']:.2f} % (best {train_state.best_top1:.2f} %)",
        "parameters": f"{outcome.parameters:,}",
        "images/s": f"{outcome.images_per_s:.0f}" if outcome.images_per_s else "not trained in this process",
        "run directory": run_dir,
        "checkpoint": outcome.checkpoint,
        "learning curve": run_dir.learning_curve,
        "MLflow": _where_to_look(config.tracking.uri, run_dir),
    }
    return "\n".join(f"{name:<17} {value}" for name, value in rows.items())


def _where_to_look(uri: str, run_dir: RunDir) -> str:
    if is_server(uri):
        return f"{uri} (run {read_run_id(run_dir, uri) or f'not made yet: tdformer runs sync {run_dir}'})"
    return f"{uri} (look: mlflow ui --backend-store-uri {uri})"
