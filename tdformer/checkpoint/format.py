"""The files of one checkpoint: how they are written, verified and read.

    checkpoints/
      latest, best                names of checkpoints, replaced atomically
      step-00000186/
        model.safetensors         parameters and BatchNorm statistics
        optimizer.safetensors     the optimizer's moments, in full, by parameter name
        ema.safetensors           moving averages of model.safetensors, if training.ema_decay is on
        state.json                how far the run has come (TrainState)
        config.yaml               the resolved configuration of the run
        manifest.json             size and SHA-256 of the files above

Tensors are full and by name, and no rank has a state of its own. Therefore a checkpoint does not depend on the ZeRO stage or on the
number of ranks. It holds no random state, because every random draw of training is a function of (seed, step, micro-batch).
"""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from data_pipelines.errors import UserError
from data_pipelines.storage.files import sha256
from data_pipelines.storage.passing_trouble import is_passing, reading_own, unavailable
from tdformer.checkpoint.train_state import FORMAT_VERSION, Snapshot, TrainState
from tdformer.models.weights import load_exactly, read_safetensors

NAME = re.compile(r"step-\d{8,}")


class CheckpointError(UserError):
    """Says that a checkpoint cannot be written or used."""


@dataclass(frozen=True)
class Checkpoint:
    """Names the files of one checkpoint. It makes, reads and checks nothing."""

    root: Path
    """The folder `checkpoints` of the run."""
    name: str

    @classmethod
    def at(cls, path: Path) -> Checkpoint:
        """Return the checkpoint that is the folder `path`."""
        return cls(path.parent, path.name)

    @classmethod
    def of_step(cls, root: Path, step: int) -> Checkpoint:
        """Return the checkpoint that a run saves after `step` global batches."""
        return cls(root, f"step-{step:08d}")

    def __str__(self) -> str:
        return str(self.path)

    @property
    def path(self) -> Path:
        return self.root / self.name

    @property
    def step(self) -> int:
        return int(self.name.removeprefix("step-"))

    @property
    def model(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def optimizer(self) -> Path:
        return self.path / "optimizer.safetensors"

    @property
    def ema(self) -> Path:
        """The moving averages. The file is missing if training.ema_decay was off."""
        return self.path / "ema.safetensors"

    @property
    def state(self) -> Path:
        return self.path / "state.json"

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def manifest(self) -> Path:
        return self.path / "manifest.json"

    @property
    def required(self) -> tuple[Path, ...]:
        """The files that every checkpoint lists in its manifest."""
        return self.model, self.optimizer, self.state, self.config


def all_in(root: Path) -> list[Checkpoint]:
    """Return the checkpoints in a folder, valid or not, in the order of their steps."""
    found = (Checkpoint(root, path.name) for path in root.glob("step-*") if NAME.fullmatch(path.name))
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def write_files(checkpoint: Checkpoint, snapshot: Snapshot, config_yaml: str, is_best: bool) -> None:
    """Write all files of a checkpoint into its folder, a new one, and sync them to the disk. Raises OSError and SafetensorError."""
    checkpoint.root.mkdir(exist_ok=True)  # without its parents: a run directory that was removed is not made again
    checkpoint.path.mkdir()
    tensor_files = {checkpoint.model: snapshot.model, checkpoint.optimizer: snapshot.optimizer}
    if snapshot.average:
        tensor_files[checkpoint.ema] = snapshot.average
    for path, tensors in tensor_files.items():
        save_file(tensors, path)
        path.chmod(0o644)  # safetensors makes it for its owner alone
    checkpoint.state.write_text(json.dumps(asdict(snapshot.train_state), indent=1))
    checkpoint.config.write_text(config_yaml)
    written = (*tensor_files, checkpoint.state, checkpoint.config)
    files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in written}
    checkpoint.manifest.write_text(json.dumps({"version": FORMAT_VERSION, "is_best": is_best, "files": files}, indent=1))
    for path in (*checkpoint.path.iterdir(), checkpoint.path):
        sync_to_disk(path)


def sync_to_disk(path: Path) -> None:
    """Return when the disk has taken a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check(checkpoint: Checkpoint) -> TrainState:
    """Raise CheckpointError, naming file and remedy, unless every file is there with its size and SHA-256.

    Raises UnavailableError if a file cannot be read now, which is no damage.
    """
    with reading_own(f"checkpoint {checkpoint}"):
        return _check(checkpoint)


def _check(checkpoint: Checkpoint) -> TrainState:
    remedy = _remedy(checkpoint)
    for name, (size, digest) in _listed_files(checkpoint, remedy).items():
        path = checkpoint.path / name
        if not path.exists():
            raise CheckpointError(f"checkpoint {checkpoint} is incomplete: {name} is missing. {remedy}")
        if path.stat().st_size != size:
            raise CheckpointError(f"checkpoint {checkpoint} is damaged: {name} has {path.stat().st_size} bytes instead of {size}. {remedy}")
        if sha256(path) != digest:
            raise CheckpointError(f"checkpoint {checkpoint} is damaged: {name} does not match its SHA-256. {remedy}")
    return read_train_state(checkpoint)


def _listed_files(checkpoint: Checkpoint, remedy: str) -> dict[str, tuple[int, str]]:
    """Read size and SHA-256 of each file from the manifest."""
    name = checkpoint.manifest.name
    try:
        entries = json.loads(checkpoint.manifest.read_text())["files"]
        files = {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in entries.items()}
    except FileNotFoundError:
        raise CheckpointError(f"checkpoint {checkpoint} is incomplete: it has no {name}. {remedy}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if is_passing(error, was_there=True):
            raise unavailable(checkpoint.manifest, error) from None
        raise CheckpointError(f"checkpoint {checkpoint} is damaged: its {name} cannot be read ({error}). {remedy}") from None
    if missing := sorted({path.name for path in checkpoint.required} - files.keys()):
        raise CheckpointError(f"checkpoint {checkpoint} is damaged: its {name} does not list {missing[0]}. {remedy}")
    return files


def read_train_state(checkpoint: Checkpoint) -> TrainState:
    """Read state.json. Raises CheckpointError if it is of another format version or damaged, UnavailableError if it cannot be read now."""
    try:
        state = json.loads(checkpoint.state.read_text())
        if (version := state.get("version")) != FORMAT_VERSION:
            raise CheckpointError(
                f"checkpoint {checkpoint} has format version {version}, and this program reads {FORMAT_VERSION}; go on with the version "
                f"of the program that wrote it, or start a new run."
            )
        return TypeAdapter(TrainState).validate_python(state)
    except FileNotFoundError:
        raise CheckpointError(f"checkpoint {checkpoint} is incomplete: {checkpoint.state.name} is missing. {_remedy(checkpoint)}") from None
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        if is_passing(error, was_there=True):
            raise unavailable(checkpoint.state, error) from None
        reason, name = str(error).splitlines()[0], checkpoint.state.name
        raise CheckpointError(f"checkpoint {checkpoint} is damaged: its {name} cannot be read ({reason}). {_remedy(checkpoint)}") from None


def was_best(checkpoint: Checkpoint) -> bool:
    """Tell whether a valid checkpoint was the best one of its run when it was saved."""
    return bool(json.loads(checkpoint.manifest.read_text()).get("is_best"))


def inspect(checkpoint: Checkpoint) -> dict[str, Any]:
    """Verify a checkpoint and summarise what it holds, for people and for JSON."""
    train_state = check(checkpoint)
    with safe_open(checkpoint.model, "pt") as model:
        sizes = {name: math.prod(model.get_slice(name).get_shape()) for name in model.keys()}  # noqa: SIM118  # not a dict
    megabytes = sum(path.stat().st_size for path in checkpoint.path.iterdir()) / 1e6
    return {
        "checkpoint": str(checkpoint),
        "step": train_state.step,
        "evaluated_epochs": train_state.evaluated_epochs,
        "world_size": train_state.world_size,
        "model_tensors": len(sizes),
        "model_values": sum(sizes.values()),
        "optimizer_tensors": len(load_optimizer(checkpoint)),
        "megabytes": round(megabytes, 1),
        "best_top1": train_state.best_top1 if train_state.evaluated_epochs else None,
        **train_state.metrics,
    }


def load_model(checkpoint: Checkpoint, model: nn.Module, *, averaged: bool = False) -> None:
    """Load parameters and statistics into a model. Raises WeightsError, and changes nothing, if names or shapes do not all fit."""
    state = load_average(checkpoint) if averaged else read_safetensors(checkpoint.model)
    load_exactly(model, state, f"checkpoint {checkpoint}")


def load_average(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Read averaged parameters and statistics. Raises CheckpointError if the run kept none."""
    with reading_own(checkpoint.ema):
        has_average = checkpoint.ema.exists()
    if not has_average:
        raise CheckpointError(f"checkpoint {checkpoint} holds no averaged weights; take its plain ones, or train with training.ema_decay.")
    return read_safetensors(checkpoint.ema)


def load_optimizer(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Read the optimizer's moments, as Engine.optimizer_state gave them."""
    return read_safetensors(checkpoint.optimizer)


def _remedy(checkpoint: Checkpoint) -> str:
    others = [other.name for other in all_in(checkpoint.root) if other != checkpoint and _has_all_sizes(other)]
    if not others:
        return "No other checkpoint beside it is whole: restore it from a copy, or start a new run."
    pointers = [name for name in ("latest", "best") if _names(checkpoint.root / name, checkpoint)] or ["latest"]
    places = " and ".join(str(checkpoint.root / name) for name in pointers)
    return f"Restore it from a copy, or go on from {others[-1]}: write that name into {places}."


def _names(pointer: Path, checkpoint: Checkpoint) -> bool:
    try:
        return pointer.read_text(errors="replace").strip() == checkpoint.name
    except OSError:
        return False


def _has_all_sizes(checkpoint: Checkpoint) -> bool:
    """Compare sizes alone, which is quick enough for a message. A checkpoint that cannot be read now counts as whole."""
    try:
        files = json.loads(checkpoint.manifest.read_text())["files"]
        return all((checkpoint.path / name).stat().st_size == entry["bytes"] for name, entry in files.items())
    except (OSError, ValueError, KeyError, TypeError) as error:
        return is_passing(error, was_there=not isinstance(error, FileNotFoundError))
