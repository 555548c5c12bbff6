"""From a configuration to a result, in one process of possibly many: what `tdformer train` and `tdformer evaluate` do."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from data_pipelines.errors import UserError
from data_pipelines.loading import evaluation_batches
from tdformer.config import RunConfig
from tdformer.datasets import check_classes, open_val
from tdformer.evaluation import evaluate
from tdformer.models.tdformer import TDFormer
from tdformer.ranks import Ranks, joined
from tdformer.training import checkpoints, run_directory
from tdformer.training.loop import Outcome, train


def run_training(load: Callable[[], RunConfig], run_dir: Path | None) -> tuple[bool, str | None]:
    """Join the other processes and train. Returns whether a signal stopped it, and on rank 0 a summary for people."""
    with joined() as ranks:
        config = ranks.from_first(ranks.together(load))
        ranks.together(lambda: config.training.accumulation(ranks.world))
        path = ranks.from_first(ranks.together(lambda: _claim(config, run_dir) if ranks.is_first else None))
        try:
            outcome = train(config, path, ranks)
        except UserError:
            if ranks.is_first and run_dir is None:
                run_directory.discard_if_unused(path)
            raise
        return outcome.stopped, _summary(config, path, outcome) if ranks.is_first else None


def _claim(config: RunConfig, run_dir: Path | None) -> Path:
    path = run_dir or run_directory.new(config)
    run_directory.claim(path, config)
    return path


def _summary(config: RunConfig, run_dir: Path, outcome: Outcome) -> str:
    if outcome.stopped:
        world = outcome.position.world
        processes = f" --processes {world}" if world > 1 else ""
        return f"stopped at step {outcome.position.step}, state saved; go on with: tdformer train {run_dir}{processes}"
    metrics = outcome.position.metrics
    rows = {
        "validation top-1": f"{metrics['top1']:.2f} % (best {outcome.position.best_top1:.2f} %)",
        "parameters": f"{outcome.parameters:,}",
        "images/s": f"{outcome.images_per_s:.0f}" if outcome.images_per_s else "not trained in this process",
        "run directory": run_dir,
        "checkpoint": outcome.checkpoint,
        "learning curve": run_dir / run_directory.CURVE_FILE,
        "MLflow": f"{config.tracking.uri} (look: mlflow ui --backend-store-uri {config.tracking.uri})",
    }
    return "\n".join(f"{name:<17} {value}" for name, value in rows.items())


def run_evaluation(load: Callable[[], RunConfig], checkpoint: Path) -> dict[str, Any] | None:
    """Join the other processes and evaluate a checkpoint on the validation set. Returns the result on rank 0, for JSON."""
    with joined() as ranks:
        config = ranks.from_first(ranks.together(load))
        position = ranks.from_first(ranks.together(lambda: checkpoints.check(checkpoint) if ranks.is_first else None))
        val_set = ranks.together(lambda: open_val(config))
        ranks.together(lambda: check_classes(val_set, position.classes, f"checkpoint {checkpoint} was trained on"))
        model = TDFormer(config.model).to(ranks.device).eval()
        ranks.together(lambda: checkpoints.load_model(checkpoint, model))
        batches = evaluation_batches(config.data, val_set, batch=config.training.eval_batch, rank=ranks.rank, world=ranks.world)
        start = time.perf_counter()
        with _autocast(config, ranks):
            result = evaluate(model.forward_segments, batches, ranks)
        speed = result.samples / (time.perf_counter() - start)
        found = {"checkpoint": str(checkpoint), "step": position.step, **asdict(result), "images_per_s": speed}
        return found if ranks.is_first else None


def _autocast(config: RunConfig, ranks: Ranks) -> Any:
    return torch.autocast(ranks.device.type, torch.bfloat16) if config.training.precision == "bf16" else nullcontext()
