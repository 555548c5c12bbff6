"""Takes a network out of its run: into a weights folder for others, or as the start of another run."""

from __future__ import annotations

from pathlib import Path

import torch

from tdformer.checkpoint import store
from tdformer.checkpoint.format import Checkpoint, check, load_average
from tdformer.checkpoint.train_state import TrainState
from tdformer.config.yaml_io import load_config
from tdformer.models import pretrained
from tdformer.models.pretrained import Weights, check_start, fitting, input_described, write_weights
from tdformer.models.tdformer import TDFormer
from tdformer.models.weights import check_exactly, check_sound, read_safetensors
from tdformer.rundir.run_dir import RunDir


def export(checkpoint: Checkpoint, folder: Path, *, averaged: bool = False) -> TrainState:
    """Write a checkpoint's network, BatchNorm statistics included. Raises UserError if it is damaged, or if the folder is in use.

    averaged: write the moving averages of weights and statistics instead.
    """
    train_state = check(checkpoint)
    config = load_config(checkpoint.config)
    state = load_average(checkpoint) if averaged else read_safetensors(checkpoint.model)
    check_sound(state, checkpoint.model)
    with torch.device("meta"):
        check_exactly(TDFormer(config.model), state, f"checkpoint {checkpoint}")
    origin = {
        "run": config.name,
        "step": train_state.step,
        "averaged": averaged,
        "metrics": train_state.metrics,
        "classes": train_state.classes,
        "precision": config.training.precision,
        **input_described(config.data),
    }
    write_weights(folder, state, config.model, origin)
    return train_state


def initial_state(model: TDFormer, init: Path) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Return the tensors that `init` gives a network, and the names that start fresh.

    init: a weights folder, or whatever store.find takes for a checkpoint. Of a checkpoint the plain weights are taken, not their
    averages. Raises UserError if it does not fit the network, or is damaged.
    """
    if (init / pretrained.CONFIG).exists() or not _is_of_a_run(init):
        return check_start(model, init)
    checkpoint = store.find(init)
    check(checkpoint)
    weights = Weights(load_config(checkpoint.config).model, {}, read_safetensors(checkpoint.model))
    return fitting(model, weights, checkpoint.path)


def _is_of_a_run(path: Path) -> bool:
    return (
        RunDir(path).checkpoints.is_dir() or Checkpoint.at(path).manifest.exists() or path.name == "checkpoints" or store.is_pointer(path)
    )
