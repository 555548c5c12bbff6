"""From a configuration to a result, in one process of possibly many: what `tdformer train` and `tdformer evaluate` do."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_pipelines.errors import UserError
from data_pipelines.formats.manifest import MANIFEST
from data_pipelines.loading.dataloader import evaluation_batches
from tdformer.checkpoint import store
from tdformer.checkpoint.store import TrainState
from tdformer.config import RunConfig
from tdformer.distributed.context import DistContext, init_distributed
from tdformer.distributed.watchdog.verdict import limits
from tdformer.evaluation import evaluate
from tdformer.models.tdformer import TDFormer
from tdformer.rundir import run_directory
from tdformer.tracking import sync
from tdformer.tracking.client import is_server
from tdformer.tracking.run_ids import read_run_id
from tdformer.training.datasets import check_classes, open_val
from tdformer.training.kernel_choice import choose_kernels
from tdformer.training.loop import Outcome, train
from tdformer.training.model_with_loss import autocast


def run_training(load: Callable[[], RunConfig], run_dir: Path | None) -> tuple[bool, str | None]:
    """Join the other processes and train. Returns whether it was stopped before its end, and on rank 0 a summary for people."""
    with init_distributed() as context, ExitStack() as holding:
        config = context.broadcast(context.on_all_ranks(load))
        context.on_all_ranks(lambda: config.training.accumulation(context.world_size))
        path = context.broadcast(context.on_all_ranks(lambda: _hold(config, run_dir, context, holding) if context.is_rank0 else None))
        _configure_watchdog(config, path, context, holding)
        try:
            outcome = train(config, path, context)
        except UserError:
            holding.close()
            if context.is_rank0 and run_dir is None:
                run_directory.discard_if_unused(path)
            raise
        return outcome.stopped, _summary(config, path, outcome, context.world_size) if context.is_rank0 else None


def _hold(config: RunConfig, run_dir: Path | None, context: DistContext, holding: ExitStack) -> Path:
    path = run_dir or run_directory.new(config)
    holding.enter_context(run_directory.held(path, config, context.watchdog.accuse_self))
    return path


def _configure_watchdog(config: RunConfig, run_dir: Path, context: DistContext, holding: ExitStack) -> None:
    def close() -> None:
        if context.is_rank0:
            holding.close()
        sync.close(run_dir)

    context.watchdog.configure(
        limits(config.watchdog.timeout_s, config.watchdog.slow_timeout_s),
        stacks_folder=run_dir / "stacks",
        advice=lambda: run_directory.how_to_go_on(run_dir, context.world_size),
        closing=close,
    )


def _summary(config: RunConfig, run_dir: Path, outcome: Outcome, world_size: int) -> str:
    if outcome.stopped:
        return f"stopped at step {outcome.train_state.step}, state saved; {run_directory.next_step(run_dir, world_size)}"
    metrics = outcome.train_state.metrics
    rows = {
        "validation top-1": f"{metrics['top1']:.2f} % (best {outcome.train_state.best_top1:.2f} %)",
        "parameters": f"{outcome.parameters:,}",
        "images/s": f"{outcome.images_per_s:.0f}" if outcome.images_per_s else "not trained in this process",
        "run directory": run_dir,
        "checkpoint": outcome.checkpoint,
        "learning curve": run_dir / run_directory.CURVE_FILE,
        "MLflow": _where_to_look(config.tracking.uri, run_dir),
    }
    return "\n".join(f"{name:<17} {value}" for name, value in rows.items())


def _where_to_look(uri: str, run_dir: Path) -> str:
    if is_server(uri):
        return f"{uri} (run {read_run_id(run_dir, uri) or 'not made yet: tdformer runs sync ' + str(run_dir)})"
    return f"{uri} (look: mlflow ui --backend-store-uri {uri})"


def run_evaluation(load: Callable[[], RunConfig], checkpoint: Path, averaged: bool) -> dict[str, Any] | None:
    """Join the other processes and evaluate a checkpoint on the validation set. Returns the result on rank 0, for JSON.

    averaged: its averaged weights.
    """
    with init_distributed() as context:
        config, train_state, model = _trained(load, checkpoint, averaged, context)
        context.watchdog.configure(limits(config.watchdog.timeout_s, config.watchdog.slow_timeout_s))
        result = _evaluate_on(config.data.val, config, train_state, model, context)
        return {"checkpoint": str(checkpoint), "step": train_state.step, **result} if context.is_rank0 else None


def run_suite(load: Callable[[], RunConfig], checkpoint: Path, averaged: bool, suite: Path) -> dict[str, Any] | None:
    """The same on every data set in a folder, such as the corruptions of ImageNet-C. mean_top1 gives each of them the same weight."""
    with init_distributed() as context:
        config, train_state, model = _trained(load, checkpoint, averaged, context)
        context.watchdog.configure(limits(config.watchdog.timeout_s, config.watchdog.slow_timeout_s))
        folders = context.broadcast(context.on_all_ranks(lambda: _data_sets_in(suite)))
        results = [{"data_set": folder.name, **_evaluate_on(str(folder), config, train_state, model, context)} for folder in folders]
        mean = sum(result["top1"] for result in results) / len(results)
        found = {"checkpoint": str(checkpoint), "step": train_state.step, "data_sets": results, "mean_top1": mean}
        return found if context.is_rank0 else None


def _data_sets_in(suite: Path) -> list[Path]:
    if folders := sorted(path.parent for path in suite.glob(f"*/{MANIFEST}")):
        return folders
    raise UserError(f"{suite} holds no data set; write some there with: tdformer data prepare SOURCE {suite}")


def _trained(
    load: Callable[[], RunConfig], checkpoint: Path, averaged: bool, context: DistContext
) -> tuple[RunConfig, TrainState, TDFormer]:
    config = context.broadcast(context.on_all_ranks(load))
    train_state = context.broadcast(context.on_all_ranks(lambda: store.check(checkpoint) if context.is_rank0 else None))
    model = TDFormer(config.model).to(context.device).eval()
    context.on_all_ranks(lambda: store.load_model(checkpoint, model, averaged=averaged))
    choose_kernels(model, config.training.kernels, context)
    return config, train_state, model


def _evaluate_on(location: str, config: RunConfig, train_state: TrainState, model: TDFormer, context: DistContext) -> dict[str, Any]:
    data = config.data.model_copy(update={"val": location})
    val_set = context.on_all_ranks(lambda: open_val(config.model_copy(update={"data": data})))
    context.on_all_ranks(lambda: check_classes(val_set, train_state.classes, "the checkpoint was trained on"))
    batches = evaluation_batches(data, val_set, batch=config.training.eval_batch, rank=context.rank, world_size=context.world_size)
    start = time.perf_counter()
    with autocast(context.device, config.training.precision):
        result = evaluate(model.forward_segments, batches, context)
    return {**asdict(result), "images_per_s": result.samples / (time.perf_counter() - start)}
