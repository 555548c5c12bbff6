"""Makes the engine of a run, from its configuration alone or from its latest checkpoint."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from data_pipelines.errors import UserError
from data_pipelines.loading.dataset import DataSet
from data_pipelines.storage.patience import Patience
from tdformer.checkpoint import store
from tdformer.checkpoint.export import initial_state
from tdformer.checkpoint.format import Checkpoint, load_average, load_model, load_optimizer
from tdformer.checkpoint.loss_scale import LossScale
from tdformer.checkpoint.train_state import TrainState
from tdformer.config import RunConfig
from tdformer.config.training import ResolvedReduction
from tdformer.distributed.context import DistContext
from tdformer.distributed.idle_gpus import notes_on_idle_gpus
from tdformer.rundir.run_dir import RunDir
from tdformer.training.deepspeed_insides import note_on_version
from tdformer.training.engine import Engine
from tdformer.training.kernel_choice import choose_kernels, use_deterministic_kernels
from tdformer.training.loss import make_loss
from tdformer.training.model_with_loss import ModelWithLoss
from tdformer.training.reduction.reduction import note_on_kernels, resolved


def has_begun(run_dir: RunDir, context: DistContext, patience: Patience) -> bool:
    """Tell all ranks whether a run goes on from a checkpoint, as store.can_resume does."""
    return context.broadcast(context.on_all_ranks(lambda: store.can_resume(run_dir) if context.is_rank0 else None, patience))


def start_or_resume(
    config: RunConfig, run_dir: RunDir, train_set: DataSet, begun: bool, context: DistContext, patience: Patience
) -> tuple[Engine, TrainState, list[str]]:
    """Return the engine, how far the run has come, and notes for the user. Raises UserError on all ranks alike.

    begun: what has_begun said. patience: how long checkpoints and weights that cannot be read now are waited for. Then UnavailableError
    is raised on all ranks.
    """
    about_machine = note_on_version() + notes_on_idle_gpus(context)
    if not begun:
        reduction = resolved(config.training.reduction, context)
        about_machine += note_on_kernels(reduction, config.training.deterministic, context.device.type)
        engine, notes = _start(config, reduction, context, patience)
        train_state = TrainState(
            world_size=context.world_size,
            samples=len(train_set),
            classes=train_set.classes,
            data=train_set.digest(),
            loss_scale=LossScale() if config.training.precision == "fp16" else None,
            reduction=reduction,
        )
        return engine, train_state, notes + about_machine
    checkpoint, train_state, passed_over = latest_valid_on_all_ranks(run_dir, context, patience)
    _check_data(config, train_state, train_set)
    notes = [f"warning: {sentence} Going on from {checkpoint.name}." for sentence in passed_over]
    engine, kernel_notes = load_engine(config, checkpoint, train_state, context, patience)
    return engine, replace(train_state, world_size=context.world_size), notes + kernel_notes + about_machine


def latest_valid_on_all_ranks(run_dir: RunDir, context: DistContext, patience: Patience) -> tuple[Checkpoint, TrainState, list[str]]:
    """Find the checkpoint to go on from on rank 0, as store.latest_valid does, and tell all ranks."""
    return context.broadcast(context.on_all_ranks(lambda: store.latest_valid(run_dir) if context.is_rank0 else None, patience))


def load_engine(
    config: RunConfig, checkpoint: Checkpoint, train_state: TrainState, context: DistContext, patience: Patience
) -> tuple[Engine, list[str]]:
    """Return an engine with the weights, statistics and moments of a checkpoint, and notes for the user.

    The checkpoint may come from another number of ranks and another ZeRO stage.
    """
    model_with_loss, notes = _model_with_loss(config, context)
    context.on_all_ranks(lambda: load_model(checkpoint, model_with_loss.model), patience)
    engine = Engine(model_with_loss, config, context, train_state.reduction)
    engine.load_optimizer_state(context.on_all_ranks(lambda: load_optimizer(checkpoint), patience), train_state.updates)
    if engine.has_average:
        engine.load_average(context.on_all_ranks(lambda: load_average(checkpoint), patience))
    return engine, notes


def _start(config: RunConfig, reduction: ResolvedReduction, context: DistContext, patience: Patience) -> tuple[Engine, list[str]]:
    model_with_loss, notes = _model_with_loss(config, context)
    if config.init is not None:
        init = config.init
        state, fresh = context.on_all_ranks(lambda: initial_state(model_with_loss.model, init), patience)
        model_with_loss.model.load_state_dict(state, strict=False)
        notes.append(f"started from the weights in {config.init}; {len(fresh)} tensors start fresh")
    return Engine(model_with_loss, config, context, reduction), notes


def _model_with_loss(config: RunConfig, context: DistContext) -> tuple[ModelWithLoss, list[str]]:
    torch.manual_seed(config.seed)
    training = config.training
    if training.deterministic:
        use_deterministic_kernels()
    criterion = make_loss(training)
    model_with_loss = ModelWithLoss(config.model, training.label_smoothing, training.recompute, training.precision, criterion)
    model_with_loss = model_with_loss.to(context.device)
    notes = choose_kernels(model_with_loss.model, training.kernels, context)
    if not training.sync_batch_norm or context.world_size == 1:
        return model_with_loss, notes
    if context.device.type != "cuda":
        raise UserError("training.sync_batch_norm needs a CUDA device for each of several ranks; on a CPU set it to false.")
    return nn.SyncBatchNorm.convert_sync_batchnorm(model_with_loss), notes


def _check_data(config: RunConfig, train_state: TrainState, train_set: DataSet) -> None:
    """Raise UserError unless the training set holds the same samples, in the same stored order, as the run began on.

    The format (WebDataset or FFCV) may differ.
    """
    if train_state.data == train_set.digest() and train_state.classes == train_set.classes:
        return
    if (train_state.samples, train_state.classes) != (len(train_set), train_set.classes):
        raise UserError(
            f"{config.data.train} holds {len(train_set)} samples of {len(train_set.classes)} classes, the run began "
            f"on {train_state.samples} of {len(train_state.classes)} or other classes; give data.train the set that it began on."
        )
    raise UserError(
        f"{config.data.train} holds other samples than the run began on, or stores them in another order (another --seed or "
        f"--samples-per-shard when it was prepared); give data.train the set that it began on, in any format."
    )
