"""Describes what a configuration would run: what `tdformer describe` shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from data_pipelines.storage.locations import is_remote
from tdformer.checkpoint.export import initial_state
from tdformer.config import RunConfig
from tdformer.config.learning_rate import schedule_of
from tdformer.config.short_runs import notes_on_length
from tdformer.models.registry import parameter_counts
from tdformer.models.tdformer import TDFormer
from tdformer.reference_curves.reference import find_reference
from tdformer.training.datasets import open_data


def describe(config: RunConfig, world_size: int, lr_by_epoch: bool = False) -> dict[str, Any]:
    """Return sizes and rates of a run on `world_size` ranks. If the data set is not on this machine, data.train_samples stands for it.

    peak_lr is the learning rate that the run is configured for, and highest_lr the highest that it reaches. lr_by_epoch, if asked for and
    the steps are known, has the mean over the steps of each epoch. notes are sentences for the user.
    Raises UserError if the global batch does not divide, or if the run would refuse the data or the initial weights that are here.
    """
    training = config.training
    accumulation = training.accumulation(world_size)
    total, of_backbone = parameter_counts(config.model)
    init = None if config.init is None else f"{config.init} (not on this machine, not checked)"
    if config.init is not None and config.init.exists():
        with torch.device("meta"):
            model = TDFormer(config.model)
        init = f"{config.init} ({len(initial_state(model, config.init)[1])} tensors start fresh)"
    is_here = is_remote(config.data.train) or Path(config.data.train).exists()
    samples = len(open_data(config)[0]) if is_here else config.data.train_samples
    steps_per_epoch = samples // training.global_batch if samples is not None else None
    reference = find_reference(training.reference).name if training.reference else None
    schedule = schedule_of(config, steps_per_epoch)
    backbone, feedback = config.model.backbone, config.model.feedback
    pooling = f", pooling {backbone.pooling}" if backbone.pooling else ""
    return {
        "name": config.name,
        "init": init,
        "backbone": f"{backbone.family} ({backbone.variant}{pooling}), {backbone.embed_dims} dims, {backbone.num_heads} heads, "
        f"depths {'-'.join(map(str, backbone.depths))}",
        "feedback": feedback and f"{feedback.control}, {feedback.processing}, blocks {feedback.blocks}, clamp {feedback.clamp}",
        "parameters": total,
        "backbone_parameters": of_backbone,
        "time_steps": config.model.time_steps,
        "segments": config.model.segments,
        "image_size": config.data.image_size,
        "classes": config.model.num_classes,
        "micro_batch": training.micro_batch,
        "world_size": world_size,
        "accumulation": accumulation,
        "global_batch": training.global_batch,
        "samples": samples,
        "steps_per_epoch": steps_per_epoch,
        "left_out_per_epoch": samples % training.global_batch if samples is not None else None,
        "epochs": training.epochs,
        "optimizer": f"{config.optimizer.name}, weight decay {config.optimizer.weight_decay:g}, schedule by {config.optimizer.schedule}",
        "loss": f"{training.loss}, label smoothing {training.label_smoothing:g}",
        "peak_lr": config.learning_rate(),
        "highest_lr": schedule.highest,
        "reference": reference,
        "precision": training.precision,
        "zero_stage": training.zero_stage,
        "recompute": training.recompute,
        **({"lr_by_epoch": list(schedule.means_by_epoch())} if lr_by_epoch and steps_per_epoch else {}),
        "notes": [*_notes_on_data(config, is_here), *notes_on_length(config, samples)],
    }


def _notes_on_data(config: RunConfig, is_here: bool) -> list[str]:
    if is_here:
        return []
    known = "data.train_samples stands for its size" if config.data.train_samples else "its size and the number of steps are not known"
    return [f"data.train is {config.data.train}, which is not on this machine: the data was not checked, and {known}"]
