"""From a configuration, and a checkpoint if there is one, to an engine that trains."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from data_pipelines.dataset import DataSet
from data_pipelines.errors import UserError
from tdformer.config import RunConfig
from tdformer.ranks import Ranks
from tdformer.training import checkpoints
from tdformer.training.checkpoints import Position
from tdformer.training.engine import Engine
from tdformer.training.export import initial_state
from tdformer.training.kernels import choose_kernels
from tdformer.training.loss_scale import LossScale
from tdformer.training.objective import Objective


def start_or_resume(config: RunConfig, run_dir: Path, train_set: DataSet, ranks: Ranks) -> tuple[Engine, Position, list[str]]:
    """The engine, where the run is, and what there is to say of it. Raises UserError on all ranks alike."""
    if not ranks.from_first(checkpoints.has_any(run_dir)):
        engine, notes = _start(config, ranks)
        position = Position(world=ranks.world, samples=len(train_set), classes=train_set.classes, data=train_set.digest())
        return engine, replace(position, loss_scale=LossScale() if config.training.precision == "fp16" else None), notes
    checkpoint, position, passed_over = newest_whole(run_dir, ranks)
    _check_data(config, position, train_set)
    notes = [f"warning: {sentence} Going on from {checkpoint.name}." for sentence in passed_over]
    engine, of_kernels = load(config, checkpoint, position, ranks)
    return engine, replace(position, world=ranks.world), notes + of_kernels


def newest_whole(run_dir: Path, ranks: Ranks) -> tuple[Path, Position, list[str]]:
    """checkpoints.newest_whole, on all ranks."""
    return ranks.from_first(ranks.together(lambda: checkpoints.newest_whole(run_dir) if ranks.is_first else None))


def load(config: RunConfig, checkpoint: Path, position: Position, ranks: Ranks) -> tuple[Engine, list[str]]:
    """An engine with the weights, statistics and moments of a checkpoint, whatever ranks and ZeRO stage it came from; and notes."""
    objective, notes = _objective(config, ranks)
    ranks.together(lambda: checkpoints.load_model(checkpoint, objective.model))
    engine = Engine(objective, config, ranks)
    engine.load_optimizer_state(ranks.together(lambda: checkpoints.load_optimizer(checkpoint)), position.updates)
    if engine.has_average:
        engine.load_average(ranks.together(lambda: checkpoints.load_average(checkpoint)))
    return engine, notes


def _start(config: RunConfig, ranks: Ranks) -> tuple[Engine, list[str]]:
    objective, notes = _objective(config, ranks)
    if config.init is not None:
        state, fresh = ranks.together(lambda: initial_state(objective.model, config.init))  # type: ignore[arg-type]  # not None
        objective.model.load_state_dict(state, strict=False)
        notes.append(f"started from the weights in {config.init}; {len(fresh)} tensors start fresh")
    return Engine(objective, config, ranks), notes


def _objective(config: RunConfig, ranks: Ranks) -> tuple[Objective, list[str]]:
    torch.manual_seed(config.seed)
    training = config.training
    objective = Objective(config.model, training.label_smoothing, training.recompute, training.precision).to(ranks.device)
    notes = choose_kernels(objective.model, training.kernels, ranks)
    if not training.sync_batch_norm or ranks.world == 1:
        return objective, notes
    if ranks.device.type != "cuda":
        raise UserError("training.sync_batch_norm needs a CUDA device for each of several ranks; on a CPU set it to false.")
    return nn.SyncBatchNorm.convert_sync_batchnorm(objective), notes


def _check_data(config: RunConfig, position: Position, train_set: DataSet) -> None:
    """A position in an epoch means something only for the samples, in the order, that it was counted on; not for a format."""
    if position.data == train_set.digest() and position.classes == train_set.classes:
        return
    if (position.samples, position.classes) != (len(train_set), train_set.classes):
        raise UserError(
            f"{config.data.train} holds {len(train_set)} samples of {len(train_set.classes)} classes, the run began "
            f"on {position.samples} of {len(position.classes)} or other classes; give data.train the set that it began on."
        )
    raise UserError(
        f"{config.data.train} holds other samples than the run began on, or stores them in another order (another --seed or "
        f"--samples-per-shard when it was prepared); give data.train the set that it began on, in any format."
    )
