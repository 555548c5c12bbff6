"""Loads trained networks: of a run, of one of its checkpoints, or of a weights folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipelines.config import DataConfig
from data_pipelines.errors import UserError
from data_pipelines.storage.files import sha256
from tdformer.checkpoint import store
from tdformer.checkpoint.format import check, load_model
from tdformer.config import Precision
from tdformer.config.yaml_io import checked, load_config
from tdformer.models import pretrained
from tdformer.models.tdformer import TDFormer

NOWHERE = "nowhere"
"""Stands for the data sets of a weights folder, which does not say where they are."""


@dataclass(frozen=True)
class Network:
    """A trained network on the CPU, in evaluation mode, and what its training was about."""

    path: Path
    """The path that the user gave."""
    name: str
    model: TDFormer
    classes: list[str]
    """Their names. Imported weights have numbers, from 0."""
    data: DataConfig
    """How its images are made. Of a weights folder without a set to evaluate on."""
    digest: str
    """SHA-256 of its weights."""
    batch: int
    """Images per forward pass that its run evaluated with."""
    precision: Precision
    """The precision that its run evaluated with."""
    run_dir: Path | None = None
    """The run directory. None for a weights folder."""
    trained_on: tuple[int, str] | None = None
    """Number of samples of the training set, and digest of their keys in stored order. None for a weights folder."""

    def described(self) -> dict[str, Any]:
        config = self.model.config
        return {
            "path": str(self.path),
            "name": self.name,
            "sha256": self.digest,
            "time_steps": config.time_steps,
            "segments": config.segments,
            "feedback": config.feedback and config.feedback.model_dump(mode="json"),
        }


def load_network(path: Path, which: str = "latest", averaged: bool = False) -> Network:
    """Load a network from a run directory, a checkpoint or a weights folder.

    which: the checkpoint of a run directory, latest or best. averaged: take the averaged weights of a run with EMA. Raises UserError.
    """
    return _from_weights(path) if pretrained.is_weights_folder(path) else _from_run(path, which, averaged)


def _from_run(path: Path, which: str, averaged: bool) -> Network:
    checkpoint = store.find(path, which)
    train_state = check(checkpoint)
    config = load_config(checkpoint.config)
    model = TDFormer(config.model).eval()
    load_model(checkpoint, model, averaged=averaged)
    return Network(
        path,
        f"{checkpoint.root.absolute().parent.name} {checkpoint.name}{' averaged' if averaged else ''}",
        model,
        train_state.classes,
        config.data,
        sha256(checkpoint.model),
        config.training.eval_batch,
        config.training.precision,
        checkpoint.root.parent,
        (train_state.samples, train_state.data),
    )


def _from_weights(folder: Path) -> Network:
    weights = read_trained(folder)
    model = pretrained.network_of(weights, folder)
    data = checked(DataConfig, {"train": NOWHERE, "val": NOWHERE, "workers": 0, **input_of(weights)}, f"{folder} cannot be used")
    return Network(
        folder,
        folder.absolute().name,
        model,
        classes_of(weights) or [str(number) for number in range(weights.config.num_classes)],
        data,
        sha256(folder / pretrained.WEIGHTS),
        batch=32,
        precision=weights.origin.get("precision", "fp32"),
    )


def read_trained(folder: Path) -> pretrained.Weights:
    """Read a weights folder that says how the images of its network are made. Raises UserError for another one."""
    weights = pretrained.read_weights(folder)
    if not isinstance(weights.origin.get("input"), dict):
        raise UserError(f"{folder} does not say which images its network takes; give its run, or export or import it again.")
    return weights


def classes_of(weights: pretrained.Weights) -> list[str] | None:
    """Return the names of the classes, or None for imported weights. Raises UserError unless there are as many as the network has."""
    if (names := weights.origin.get("classes")) is None:
        return None
    if len(names) != weights.config.num_classes:
        raise UserError(f"the weights name {len(names)} classes, and their network has {weights.config.num_classes}; export them again.")
    return [str(name) for name in names]


def input_of(weights: pretrained.Weights) -> dict[str, Any]:
    """Return the keys of DataConfig that say how the images of exported weights are made."""
    return {**weights.origin["input"], **{name: weights.origin[name] for name in ("interpolation",) if name in weights.origin}}


def data_of(network: Network, location: str | None) -> DataConfig:
    """Return where the validation set is, and how its images are made. location: another set than its run's.

    Raises UserError for a weights folder without a location.
    """
    if location is not None:
        return network.data.model_copy(update={"val": location})
    if network.data.val == NOWHERE:
        raise UserError(f"{network.path} does not say where the validation set is; name one with --data.")
    return network.data
