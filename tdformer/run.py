"""From a configuration to a result, in one process of possibly many: what `tdformer train` and `tdformer evaluate` do."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_pipelines.errors import UserError
from data_pipelines.loading import evaluation_batches
from data_pipelines.manifest import MANIFEST
from tdformer.config import RunConfig
from tdformer.datasets import check_classes, open_val
from tdformer.evaluation import evaluate
from tdformer.models.tdformer import TDFormer
from tdformer.ranks import Ranks, joined
from tdformer.tracking import sync
from tdformer.tracking.client import is_server
from tdformer.tracking.run_ids import read_run_id
from tdformer.training import checkpoints, run_directory
from tdformer.training.checkpoints import Position
from tdformer.training.kernels import choose_kernels
from tdformer.training.loop import Outcome, train
from tdformer.training.objective import autocast
from tdformer.watchdog.diagnosis import Timeouts


def run_training(load: Callable[[], RunConfig], run_dir: Path | None) -> tuple[bool, str | None]:
    """Join the other processes and train. Returns whether it was stopped before its end, and on rank 0 a summary for people."""
    with joined() as ranks, ExitStack() as holding:
        config = ranks.from_first(ranks.together(load))
        ranks.together(lambda: config.training.accumulation(ranks.world))
        path = ranks.from_first(ranks.together(lambda: _hold(config, run_dir, ranks, holding) if ranks.is_first else None))
        _configure_watchdog(config, path, ranks, holding)
        try:
            outcome = train(config, path, ranks)
        except UserError:
            holding.close()
            if ranks.is_first and run_dir is None:
                run_directory.discard_if_unused(path)
            raise
        return outcome.stopped, _summary(config, path, outcome, ranks.world) if ranks.is_first else None


def _hold(config: RunConfig, run_dir: Path | None, ranks: Ranks, holding: ExitStack) -> Path:
    path = run_dir or run_directory.new(config)
    holding.enter_context(run_directory.held(path, config, ranks.watchdog.abort))
    return path


def _configure_watchdog(config: RunConfig, run_dir: Path, ranks: Ranks, holding: ExitStack) -> None:
    def close() -> None:
        if ranks.is_first:
            holding.close()
        sync.close(run_dir)

    ranks.watchdog.configure(
        Timeouts.from_config(config.watchdog.timeout_s, config.watchdog.slow_timeout_s),
        stacks_folder=run_dir / "stacks",
        advice=lambda: run_directory.how_to_go_on(run_dir, ranks.world),
        closing=close,
    )


def _summary(config: RunConfig, run_dir: Path, outcome: Outcome, world: int) -> str:
    if outcome.stopped:
        return f"stopped at step {outcome.position.step}, state saved; {run_directory.next_step(run_dir, world)}"
    metrics = outcome.position.metrics
    rows = {
        "validation top-1": f"{metrics['top1']:.2f} % (best {outcome.position.best_top1:.2f} %)",
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
    with joined() as ranks:
        config, position, model = _trained(load, checkpoint, averaged, ranks)
        ranks.watchdog.configure(Timeouts.from_config(config.watchdog.timeout_s, config.watchdog.slow_timeout_s))
        result = _evaluate_on(config.data.val, config, position, model, ranks)
        return {"checkpoint": str(checkpoint), "step": position.step, **result} if ranks.is_first else None


def run_suite(load: Callable[[], RunConfig], checkpoint: Path, averaged: bool, suite: Path) -> dict[str, Any] | None:
    """The same on every data set in a folder, such as the corruptions of ImageNet-C. mean_top1 gives each of them the same weight."""
    with joined() as ranks:
        config, position, model = _trained(load, checkpoint, averaged, ranks)
        ranks.watchdog.configure(Timeouts.from_config(config.watchdog.timeout_s, config.watchdog.slow_timeout_s))
        folders = ranks.from_first(ranks.together(lambda: _data_sets_in(suite)))
        results = [{"data_set": folder.name, **_evaluate_on(str(folder), config, position, model, ranks)} for folder in folders]
        mean = sum(result["top1"] for result in results) / len(results)
        found = {"checkpoint": str(checkpoint), "step": position.step, "data_sets": results, "mean_top1": mean}
        return found if ranks.is_first else None


def _data_sets_in(suite: Path) -> list[Path]:
    if folders := sorted(path.parent for path in suite.glob(f"*/{MANIFEST}")):
        return folders
    raise UserError(f"{suite} holds no data set; write some there with: tdformer data prepare SOURCE {suite}")


def _trained(load: Callable[[], RunConfig], checkpoint: Path, averaged: bool, ranks: Ranks) -> tuple[RunConfig, Position, TDFormer]:
    config = ranks.from_first(ranks.together(load))
    position = ranks.from_first(ranks.together(lambda: checkpoints.check(checkpoint) if ranks.is_first else None))
    model = TDFormer(config.model).to(ranks.device).eval()
    ranks.together(lambda: checkpoints.load_model(checkpoint, model, averaged=averaged))
    choose_kernels(model, config.training.kernels, ranks)
    return config, position, model


def _evaluate_on(location: str, config: RunConfig, position: Position, model: TDFormer, ranks: Ranks) -> dict[str, Any]:
    data = config.data.model_copy(update={"val": location})
    val_set = ranks.together(lambda: open_val(config.model_copy(update={"data": data})))
    ranks.together(lambda: check_classes(val_set, position.classes, "the checkpoint was trained on"))
    batches = evaluation_batches(data, val_set, batch=config.training.eval_batch, rank=ranks.rank, world=ranks.world)
    start = time.perf_counter()
    with autocast(ranks.device, config.training.precision):
        result = evaluate(model.forward_segments, batches, ranks)
    return {**asdict(result), "images_per_s": result.samples / (time.perf_counter() - start)}
