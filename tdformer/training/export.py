"""A trained network, out of its run: a weights folder for others to load."""

from __future__ import annotations

from pathlib import Path

import torch

from tdformer.config_io import load_config
from tdformer.models.pretrained import write_weights
from tdformer.models.tdformer import TDFormer
from tdformer.models.weights import check_exactly, check_sound, read_safetensors
from tdformer.training import checkpoints
from tdformer.training.checkpoints import Position


def export(checkpoint: Path, folder: Path) -> Position:
    """Write a checkpoint's network, BatchNorm statistics included. Raises UserError if it is damaged, or the folder is in use."""
    position = checkpoints.check(checkpoint)
    config = load_config(checkpoint / checkpoints.CONFIG)
    state = read_safetensors(checkpoint / checkpoints.MODEL)
    check_sound(state, checkpoint / checkpoints.MODEL)
    with torch.device("meta"):
        check_exactly(TDFormer(config.model), state, f"checkpoint {checkpoint}")
    data = config.data
    origin = {
        "run": config.name,
        "step": position.step,
        "metrics": position.metrics,
        "classes": position.classes,
        "input": {"image_size": data.image_size, "crop_pct": data.crop_pct, "mean": data.mean, "std": data.std},
    }
    write_weights(folder, state, config.model, origin)
    return position
