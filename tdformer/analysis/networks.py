"""The networks that are analysed: of a run, of one of its checkpoints, or of a weights folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipelines.config import DataConfig
from data_pipelines.errors import UserError
from data_pipelines.storage.files import sha256
from tdformer.checkpoint import store
from tdformer.checkpoint.format import check, load_model
from tdformer.config.yaml_io import load_config
from tdformer.models import pretrained
from tdformer.models.tdformer import TDFormer

UNKNOWN = "an unknown number of samples"


@dataclass(frozen=True)
class Network:
    """A trained network on the CPU, in evaluation mode, and what its training was about."""

    path: Path
    """The path that the user gave."""
    name: str
    model: TDFormer
    classes: list[str]
    data: DataConfig | None
    """The data of its run. None for a weights folder."""
    image_size: int | None
    """The size at which it was trained. None if the weights folder does not say."""
    digest: str
    """SHA-256 of its weights."""
    batch: int
    """Images per forward pass that its run evaluated with."""
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
        config.data.image_size,
        sha256(checkpoint.model),
        config.training.eval_batch,
        checkpoint.root.parent,
        (train_state.samples, train_state.data),
    )


def _from_weights(folder: Path) -> Network:
    model, origin = pretrained.load_pretrained(folder), pretrained.read_origin(folder)
    image = origin.get("input")
    if not isinstance(image, dict) or not isinstance(origin.get("classes"), list):
        raise UserError(f"{folder} does not say which images and classes it was trained on; analyse its run, or export it again.")
    return Network(
        folder,
        folder.absolute().name,
        model,
        list(origin["classes"]),
        None,
        int(image["image_size"]),
        sha256(folder / pretrained.WEIGHTS),
        batch=32,
    )


def data_of(network: Network, location: str | None) -> DataConfig:
    """Return how the images of an analysis are made: as the network's own evaluation does. location: another set than its run's.

    Raises UserError for a weights folder without a location.
    """
    if network.data is not None:
        return network.data if location is None else network.data.model_copy(update={"val": location})
    if location is None:
        raise UserError(f"{network.path} does not say where the validation set is; name one with --data.")
    return DataConfig(train=location, val=location, workers=0, **pretrained.read_origin(network.path)["input"])


def check_comparable(network: Network, baseline: Network) -> list[str]:
    """Raise UserError unless both networks were trained on the same classes, at the same size, with the same time steps.

    Returns notes: what may make the comparison unfair.
    """
    if baseline.classes != network.classes:
        raise UserError(
            f"baseline {baseline.path} was trained on other classes than {network.path} ({len(baseline.classes)} and "
            f"{len(network.classes)}, or other names); give a baseline of the same data."
        )
    for what, own, other in (
        ("a training set of", _samples(network), _samples(baseline)),
        ("images of size", network.image_size, baseline.image_size),
        ("a number of time steps of", network.model.time_steps, baseline.model.time_steps),
        ("a number of input channels of", network.model.config.backbone.in_channels, baseline.model.config.backbone.in_channels),
    ):
        if own != other and UNKNOWN not in (own, other):
            raise UserError(
                f"baseline {baseline.path} has {what} {other}, and {network.path} has {own}; give a baseline that has the same."
            )
    if network.trained_on and baseline.trained_on and network.trained_on != baseline.trained_on:
        return [f"{baseline.path} was trained on other samples than {network.path}, or on the same ones in another order"]
    return []


def _samples(network: Network) -> str:
    return f"{network.trained_on[0]:,} samples" if network.trained_on else UNKNOWN
