"""Saved training state: everything that a resume needs, in plain tensors and JSON, written by rank 0 alone.

    checkpoints/
      latest, best                names of checkpoints, replaced atomically
      step-00000186/
        model.safetensors         parameters and BatchNorm statistics
        optimizer.safetensors     the optimizer's moments, in full, by parameter name
        ema.safetensors           the averages of what is in model.safetensors, if training.ema_decay is on
        state.json                the position in the run
        config.yaml               the resolved run
        manifest.json             size and SHA-256 of the files above

A checkpoint is written under a hidden name, synced to disk and then renamed: a folder named step-… is whole.
Tensors are full and by name, and no rank has a state of its own, so a checkpoint does not depend on the ZeRO stage or the
number of ranks. There is no random state: every random draw of training is a function of (seed, step, micro-batch), see
training.loop.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from data_pipelines.errors import UserError
from data_pipelines.storage.files import sha256
from tdformer.checkpoint.loss_scale import LossScale
from tdformer.models.weights import load_exactly, read_safetensors

MODEL, OPTIMIZER, STATE, CONFIG, MANIFEST = "model.safetensors", "optimizer.safetensors", "state.json", "config.yaml", "manifest.json"
EMA, TENSOR_FILES, LATEST, BEST = "ema.safetensors", (MODEL, OPTIMIZER), "latest", "best"
FORMAT_VERSION = 2
NAME = re.compile(r"step-\d{8,}")


class CheckpointError(UserError):
    """A checkpoint that cannot be used."""


@dataclass(frozen=True)
class TrainState:
    """How far a run has come. Epoch and place within it follow from `step`, as all steps are equal."""

    step: int = 0
    """Global batches that were trained on, those aside that were skipped for their numbers included."""
    updates: int = 0
    """Optimizer steps behind the weights: `step` without the global batches that were skipped or undone."""
    evaluated_epochs: int = 0
    """Epochs whose evaluation is done."""
    best_top1: float = -1.0
    """In validation; of the averaged weights, if training.ema_decay is on."""
    world_size: int = 1
    """Ranks that saved this."""
    samples: int = 0
    """In the training set."""
    classes: list[str] = field(default_factory=list)
    """Names of the classes, in the order of their labels."""
    data: str = ""
    """Digest of the training set's samples in their order of storage, which `step` counts."""
    bad_samples: int = 0
    """That could not be read and were replaced, over all ranks since the run began."""
    non_finite: int = 0
    """Global batches whose loss or gradient was not finite, and that training went past."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Of the last evaluation."""
    loss_scale: LossScale | None = None
    """For the next global batch, in fp16."""
    version: int = FORMAT_VERSION


@dataclass(frozen=True)
class Snapshot:
    """Everything that a resume needs. Tensors by name, on the CPU."""

    train_state: TrainState
    model: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    average: dict[str, torch.Tensor] | None = None
    """Of model, if training.ema_decay is on."""


@dataclass(frozen=True)
class RetentionPolicy:
    """Which checkpoints stay: the last ones, those whose step is a multiple of `every`, and the best one."""

    last: int = 2
    every: int | None = None


# --- writing -----------------------------------------------------------------------------------------------


def save(root: Path, state: Snapshot, config_yaml: str, *, is_best: bool = False, keep: RetentionPolicy = RetentionPolicy()) -> Path:
    """Write a checkpoint, point `latest` (and `best`) to it, remove old ones. Only rank 0 calls this.

    Raises CheckpointError if the disk does not take it; the earlier ones stay as they are.
    """
    final = place_of(root, state.train_state.step)
    partial = root / f".partial-{final.name}"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _write(partial, state, config_yaml, is_best)
        _put(partial, final)
        _point(root / LATEST, final.name)
        if is_best:
            _point(root / BEST, final.name)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(f"checkpoint {final} cannot be written ({error}); earlier ones are whole; make room and go on.") from error
    _remove_old(root, keep)
    return final


def place_of(root: Path, step: int) -> Path:
    return root / f"step-{step:08d}"


def _put(partial: Path, final: Path) -> None:
    """Give a whole checkpoint its name. One of the same step (with less done after it) is moved aside until then, not lost."""
    replaced = final.with_name(f".replaced-{final.name}")
    shutil.rmtree(replaced, ignore_errors=True)
    if final.exists():
        final.rename(replaced)
    partial.rename(final)
    _sync(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _write(partial: Path, state: Snapshot, config_yaml: str, is_best: bool) -> None:
    partial.mkdir(parents=True)
    tensor_files = {MODEL: state.model, OPTIMIZER: state.optimizer} | ({EMA: state.average} if state.average else {})
    for name, tensors in tensor_files.items():
        save_file(tensors, partial / name)
        (partial / name).chmod(0o644)  # safetensors makes it for its owner alone
    (partial / STATE).write_text(json.dumps(asdict(state.train_state), indent=1))
    (partial / CONFIG).write_text(config_yaml)
    files = {name: {"bytes": (partial / name).stat().st_size, "sha256": sha256(partial / name)} for name in (*tensor_files, STATE, CONFIG)}
    (partial / MANIFEST).write_text(json.dumps({"version": FORMAT_VERSION, "is_best": is_best, "files": files}, indent=1))
    for path in (*partial.iterdir(), partial):
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _point(pointer: Path, name: str) -> None:
    partial = _partial_of(pointer)
    partial.write_text(name + "\n")
    _sync(partial)
    partial.replace(pointer)


def _named_by(pointer: Path) -> str:
    """What may be anything, and nothing."""
    return pointer.read_text(errors="replace").strip() if pointer.is_file() else ""


def _partial_of(pointer: Path) -> Path:
    return pointer.with_name(f".{pointer.name}")


def _remove_old(root: Path, keep: RetentionPolicy) -> None:
    """Renamed first: a removal that is cut short leaves no half checkpoint under its name."""
    kept = {_named_by(root / name) for name in (LATEST, BEST)}
    for old in _by_step(root)[: -keep.last]:
        if old.name not in kept and not (keep.every and _step_of(old) % keep.every == 0):
            shutil.rmtree(old.rename(root / f".removed-{old.name}"), ignore_errors=True)
    for left_behind in itertools.chain.from_iterable(root.glob(f".{kind}-*") for kind in ("partial", "replaced", "removed")):
        shutil.rmtree(left_behind, ignore_errors=True)
    for name in (LATEST, BEST):
        _partial_of(root / name).unlink(missing_ok=True)


def _by_step(root: Path) -> list[Path]:
    return sorted((path for path in root.glob("step-*") if NAME.fullmatch(path.name)), key=_step_of)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


# --- finding and reading -----------------------------------------------------------------------------------


def find(path: Path, which: str = LATEST) -> Path:
    """The checkpoint that a user means by a run directory, its checkpoints folder, or a checkpoint itself."""
    if (path / MANIFEST).exists() or path.name.startswith("step-"):
        return path
    root = path if path.name == "checkpoints" else path / "checkpoints"
    pointer = root / which
    if not pointer.exists():
        raise CheckpointError(f"{path} holds no {which} checkpoint; give a run directory or a folder checkpoints/step-… within one.")
    name = _named_by(pointer)
    if not NAME.fullmatch(name):
        raise CheckpointError(f"{pointer} does not name a checkpoint; write the name of a folder step-… beside it into it.")
    return root / name


def has_any(run_dir: Path) -> bool:
    """Whether a run directory holds anything that a resume could mean: a pointer or a checkpoint, whole or not."""
    root = run_dir / "checkpoints"
    return (root / LATEST).exists() or any(root.glob("step-*"))


def latest_valid(run_dir: Path) -> tuple[Path, TrainState, list[str]]:
    """The checkpoint to go on from, its position, and what is wrong with the newer ones that were passed over.

    That is the one that `latest` names, else the newest before it. Raises CheckpointError if there is none: a run that has
    checkpoints never begins again from nothing.
    """
    root, told = run_dir / "checkpoints", []
    _restore_replaced(root)
    try:
        named = find(run_dir)
        candidates = [named, *(path for path in reversed(_by_step(root)) if _step_of(path) < _step_of(named))]
    except CheckpointError as error:
        told.append(str(error))
        candidates = _by_step(root)[::-1]
    for candidate in candidates:
        try:
            train_state = check(candidate)
            _restore_best(candidate)
            return candidate, train_state, told
        except CheckpointError as error:
            told.append(str(error))
    raise CheckpointError(f"no checkpoint of {run_dir} is whole; restore one from a copy, or start a new run. {told[0]}")


def _restore_replaced(root: Path) -> None:
    """A crash between the two renames of a replacement left the old checkpoint, whole, under a hidden name."""
    for replaced in root.glob(".replaced-step-*"):
        final = root / replaced.name.removeprefix(".replaced-")
        if not final.exists():
            replaced.rename(final)


def _restore_best(checkpoint: Path) -> None:
    """A crash after the best checkpoint got its name, before `best` did, would lose it: nothing is done again for it."""
    best = checkpoint.parent / BEST
    if json.loads((checkpoint / MANIFEST).read_text()).get("is_best") and _named_by(best) != checkpoint.name:
        _point(best, checkpoint.name)


def check(checkpoint: Path) -> TrainState:
    """Raise CheckpointError, naming file and remedy, unless every file is there with its size and SHA-256."""
    remedy = _remedy(checkpoint)
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text())
        files = {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in manifest["files"].items()}
    except FileNotFoundError:
        raise CheckpointError(f"checkpoint {checkpoint} is incomplete: it has no {MANIFEST}. {remedy}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"checkpoint {checkpoint} is damaged: its {MANIFEST} cannot be read ({error}). {remedy}") from None
    if missing := sorted({*TENSOR_FILES, STATE, CONFIG} - files.keys()):
        raise CheckpointError(f"checkpoint {checkpoint} is damaged: its {MANIFEST} does not list {missing[0]}. {remedy}")
    for name, (size, digest) in files.items():
        path = checkpoint / name
        if not path.exists():
            raise CheckpointError(f"checkpoint {checkpoint} is incomplete: {name} is missing. {remedy}")
        if path.stat().st_size != size:
            raise CheckpointError(f"checkpoint {checkpoint} is damaged: {name} has {path.stat().st_size} bytes instead of {size}. {remedy}")
        if sha256(path) != digest:
            raise CheckpointError(f"checkpoint {checkpoint} is damaged: {name} does not match its SHA-256. {remedy}")
    return read_position(checkpoint)


def read_position(checkpoint: Path) -> TrainState:
    """Raises CheckpointError for another version, and for what is no position."""
    try:
        state = json.loads((checkpoint / STATE).read_text())
        if (version := state.get("version")) != FORMAT_VERSION:
            raise CheckpointError(f"checkpoint {checkpoint} has format version {version}; this program reads {FORMAT_VERSION}.")
        return TypeAdapter(TrainState).validate_python(state)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"checkpoint {checkpoint} is damaged: its {STATE} cannot be read ({reason}). {_remedy(checkpoint)}") from None


def inspect(checkpoint: Path) -> dict[str, Any]:
    """Verify a checkpoint and tell what it holds, for people and for JSON."""
    train_state = check(checkpoint)
    with safe_open(checkpoint / MODEL, "pt") as model:
        sizes = {name: math.prod(model.get_slice(name).get_shape()) for name in model.keys()}  # noqa: SIM118  # not a dict
    moments = len(load_optimizer(checkpoint))
    megabytes = sum(path.stat().st_size for path in checkpoint.iterdir()) / 1e6
    return {
        "checkpoint": str(checkpoint),
        "step": train_state.step,
        "evaluated_epochs": train_state.evaluated_epochs,
        "world_size": train_state.world_size,
        "model_tensors": len(sizes),
        "model_values": sum(sizes.values()),
        "optimizer_tensors": moments,
        "megabytes": round(megabytes, 1),
        "best_top1": train_state.best_top1,
        **train_state.metrics,
    }


def _remedy(checkpoint: Path) -> str:
    others = [other.name for other in sorted(checkpoint.parent.glob("step-*")) if other != checkpoint and _is_whole(other)]
    if not others:
        return "No other checkpoint beside it is whole: restore it from a copy, or start a new run."
    return f"Restore it from a copy, or go on from {others[-1]}: write that name into {checkpoint.parent / LATEST}."


def _is_whole(checkpoint: Path) -> bool:
    """By sizes alone: quick enough for a message."""
    try:
        files = json.loads((checkpoint / MANIFEST).read_text())["files"]
        return all((checkpoint / name).stat().st_size == entry["bytes"] for name, entry in files.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def load_model(checkpoint: Path, model: nn.Module, *, averaged: bool = False) -> None:
    """Parameters and statistics into a model; nothing is changed if names or shapes do not all fit."""
    state = load_average(checkpoint) if averaged else read_safetensors(checkpoint / MODEL)
    load_exactly(model, state, f"checkpoint {checkpoint}")


def load_average(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Averaged parameters and statistics. Raises CheckpointError if the run kept none."""
    if not (checkpoint / EMA).exists():
        raise CheckpointError(f"checkpoint {checkpoint} holds no averaged weights; take its plain ones, or train with training.ema_decay.")
    return read_safetensors(checkpoint / EMA)


def load_optimizer(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The optimizer's moments as Engine.optimizer_state gave them."""
    return read_safetensors(checkpoint / OPTIMIZER)
