"""TDFormer (arXiv 2505.15840): a spiking transformer with a top-down path, and the system that trains it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from tdformer.inference.predictor import Predictor

__version__ = "0.1.0"


def load(path: str | Path, which: str = "best", averaged: bool = False, device: torch.device | str | None = None) -> Predictor:
    """Load a trained network that answers images: `tdformer.load("runs/demo-001").predict(["a.png", "b.png"])`.

    path: a run directory, a checkpoint or a weights folder. which: the checkpoint of a run directory, best or latest. averaged: take the
    averaged weights of a run with EMA. device: None takes a GPU if there is one. The network itself is its attribute `model`. Raises
    UserError.
    """
    from tdformer.inference.predictor import load_predictor

    return load_predictor(path, which, averaged, device)
