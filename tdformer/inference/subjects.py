"""What is evaluated: the network of a checkpoint, or of a weights folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from data_pipelines.errors import UserError
from tdformer.checkpoint.format import Checkpoint, check, load_model
from tdformer.config import RunConfig
from tdformer.config.yaml_io import load_config, with_overrides
from tdformer.inference.networks import NOWHERE, classes_of, input_of, read_trained
from tdformer.models.pretrained import Weights
from tdformer.models.tdformer import TDFormer
from tdformer.models.weights import load_exactly


@dataclass(frozen=True)
class Known:
    """What is known of a network before it is loaded."""

    classes: list[str] | None
    """Their names. None for imported weights, which have none."""
    described: dict[str, Any]
    """The result says with these entries where the network comes from."""


class Subject(Protocol):
    """A network that can be evaluated. All methods read files, and raise UserError."""

    def config(self) -> RunConfig:
        """Return the configuration of the evaluation: network, data, precision."""

    def check(self) -> Known:
        """Check the files."""

    def load_into(self, model: TDFormer) -> None:
        """Give a network of the configuration its weights."""


@dataclass(frozen=True)
class OfRun:
    """The network of a checkpoint, evaluated as its run evaluates it. averaged: its averaged weights."""

    checkpoint: Checkpoint
    averaged: bool
    overrides: Sequence[str]

    def config(self) -> RunConfig:
        if not self.checkpoint.config.exists():
            check(self.checkpoint)  # says what is missing, and what to do
        return load_config(self.checkpoint.config, self.overrides)

    def check(self) -> Known:
        train_state = check(self.checkpoint)
        return Known(train_state.classes, {"checkpoint": str(self.checkpoint), "step": train_state.step})

    def load_into(self, model: TDFormer) -> None:
        load_model(self.checkpoint, model, averaged=self.averaged)


@dataclass(frozen=True)
class OfWeights:
    """The network of a weights folder. It does not say where a data set is, so that the overrides have to: data.val=…."""

    folder: Path
    overrides: Sequence[str]

    @cached_property
    def _weights(self) -> Weights:
        """The folder's content, which is read and compared with its SHA-256 once."""
        return read_trained(self.folder)

    def config(self) -> RunConfig:
        weights = self._weights
        tree = {
            "name": "evaluation",
            "data": {"train": NOWHERE, "val": NOWHERE, "workers": min(4, os.cpu_count() or 1), **input_of(weights)},
            "model": weights.config.model_dump(),
            "training": {"precision": weights.origin.get("precision", "fp32")},
        }
        config = with_overrides(tree, self.overrides, f"{self.folder} cannot be evaluated")
        if config.data.val == NOWHERE:
            raise UserError(f"{self.folder} does not say where the validation set is; name one with --data.")
        return config

    def check(self) -> Known:
        weights = self._weights
        return Known(classes_of(weights), {"weights": str(self.folder), "step": weights.origin.get("step")})

    def load_into(self, model: TDFormer) -> None:
        load_exactly(model, self._weights.state, f"weights {self.folder}")
