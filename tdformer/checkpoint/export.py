"""A trained network, out of its run: a weights folder for others to load, or what another run starts from."""

from __future__ import annotations

from pathlib import Path

import torch

from tdformer.checkpoint import store
from tdformer.checkpoint.store import TrainState
from tdformer.config.yaml_io import load_config
from tdformer.models import pretrained
from tdformer.models.pretrained import Weights, check_start, fitting, write_weights
from tdformer.models.tdformer import TDFormer
from tdformer.models.weights import check_exactly, check_sound, read_safetensors


def export(checkpoint: Path, folder: Path, *, averaged: bool = False) -> TrainState:
    """Write a checkpoint's network, BatchNorm statistics included. Raises UserError if it is damaged, or the folder is in use.

    averaged: the moving averages of its weights and statistics instead.
    """
    train_state = store.check(checkpoint)
    config = load_config(checkpoint / store.CONFIG)
    state = store.load_average(checkpoint) if averaged else read_safetensors(checkpoint / store.MODEL)
    check_sound(state, checkpoint / store.MODEL)
    with torch.device("meta"):
        check_exactly(TDFormer(config.model), state, f"checkpoint {checkpoint}")
    data = config.data
    origin = {
        "run": config.name,
        "step": train_state.step,
        "averaged": averaged,
        "metrics": train_state.metrics,
        "classes": train_state.classes,
        "input": {"image_size": data.image_size, "crop_pct": data.crop_pct, "mean": data.mean, "std": data.std},
    }
    write_weights(folder, state, config.model, origin)
    return train_state


def initial_state(model: TDFormer, init: Path) -> tuple[dict[str, torch.Tensor], list[str]]:
    """What a run's `init` gives a network, and the names that start fresh. Raises UserError if it does not fit, or is damaged.

    A weights folder, or a checkpoint as checkpoints.find understands it, whose weights (not their averages) are taken.
    """
    is_weights = (init / pretrained.CONFIG).exists()
    if is_weights or not ((init / "checkpoints").is_dir() or (init / store.MANIFEST).exists() or init.name == "checkpoints"):
        return check_start(model, init)
    checkpoint = store.find(init)
    store.check(checkpoint)
    config, state = load_config(checkpoint / store.CONFIG).model, read_safetensors(checkpoint / store.MODEL)
    return fitting(model, Weights(config, {}, state), checkpoint)
