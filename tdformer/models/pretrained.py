"""Reads published checkpoints, and reads and writes weights folders of safetensors and JSON.

A weights folder holds

    model.safetensors   the tensors, by their names in a TDFormer
    config.json         the ModelConfig that they belong to, and where they come from

An imported one holds a backbone (with or without its head) for a run to start from, an exported one a whole network.
Published checkpoints are read as plain tensors; nothing that they bring is executed.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file

from data_pipelines.config import DataConfig
from data_pipelines.errors import UserError
from data_pipelines.storage.files import sha256
from data_pipelines.storage.passing_trouble import is_passing, unavailable
from tdformer.config import ModelConfig
from tdformer.config.dotted_keys import differences
from tdformer.config.yaml_io import checked
from tdformer.models.published_files import read_tensors
from tdformer.models.published_names import own_names
from tdformer.models.tdformer import TDFormer
from tdformer.models.timm_folder import timm_description
from tdformer.models.weights import WeightsError, check_exactly, check_sound, match, printable, read_safetensors

WEIGHTS, CONFIG = "model.safetensors", "config.json"
FORMAT = "tdformer weights 2"
LISTED = 20
"""An error lists at most this number of names of each kind."""

Head = Literal["keep", "new"]


@dataclass(frozen=True)
class Imported:
    """The part of a published checkpoint that fits a network."""

    state: dict[str, torch.Tensor]
    """The tensors that fit, by their names in the TDFormer."""
    used: list[str]
    """The published names of those tensors."""
    unused: list[str]
    """Published names that the network has no place for, or was told not to take."""
    missing: list[str]
    """Names of the network (top-down weights, a new head) that will start fresh."""
    key: str | None
    """The entry of the file that was read. None if the file holds nothing but the tensors."""
    other_keys: list[str]
    """Entries of the file that hold other tensors, such as a moving average of the weights."""


def read_published(path: Path, config: ModelConfig, head: Head = "keep", ignore_unused: bool = False, key: str | None = None) -> Imported:
    """Read a published QKFormer, Spikformer or SDT checkpoint for a network of `config`. See read_tensors for the form of the file.

    key: the entry of the file to read, if it has several. BatchNorm's counters of batches may be absent, and then begin at zero.
    Raises WeightsError unless all of the backbone is there in the right shapes; the error calls tensors by their published names.
    """
    file = read_tensors(path, key)
    published = file.tensors
    if any(name.startswith("backbone.") for name in published):
        raise WeightsError(f"{path} holds a TDFormer of this program, not a published backbone: give its folder to a run as `init`.")
    model = TDFormer(config)
    of_head = [name for name in published if name.startswith("head.")]
    taken = published if head == "keep" else {name: tensor for name, tensor in published.items() if name not in of_head}
    own = {name: f"backbone.{own}" for name, own in own_names(model.backbone.state_dict(), config.backbone).items()}
    state, topdown = model.state_dict(), model.topdown_parameters()
    found = match({name: state[own[name]] for name in own}, taken)
    allowed_to_miss = {"head.weight", "head.bias"} if head == "new" else set()
    wrongly_missing = [name for name in found.missing if own[name] not in topdown and name not in allowed_to_miss and not _is_counter(name)]
    if wrongly_missing or found.misshapen or (found.unused and not ignore_unused):
        raise WeightsError(_of_another_architecture(path, config, wrongly_missing, found.unused, found.misshapen))
    counters = {own[name]: torch.zeros((), dtype=torch.int64) for name in found.missing if _is_counter(name)}
    missing = {own[name] for name in found.missing} - counters.keys()
    fresh = [name for name in state if name in topdown or name in missing]
    left = [*found.unused, *(of_head if head == "new" else [])]
    tensors = {own[name]: taken[name] for name in found.used} | counters
    return Imported(tensors, found.used, left, fresh, file.key, file.other_keys)


def write_weights(folder: Path, state: Mapping[str, torch.Tensor], config: ModelConfig, origin: dict[str, Any]) -> None:
    """Write a weights folder. Raises UserError if the folder holds anything already."""
    folder = Path(os.path.abspath(folder))
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder} exists and is not empty; nothing is overwritten, give another folder.")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder.parent, ignore_cleanup_errors=True) as partial:
            whole = Path(partial) / "weights"
            whole.mkdir()
            save_file({name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}, whole / WEIGHTS)
            (whole / WEIGHTS).chmod(0o644)  # safetensors makes it for its owner alone
            digest = sha256(whole / WEIGHTS)
            own = {"format": FORMAT, "model": config.model_dump(mode="json"), "sha256": digest, "origin": origin}
            description = own | timm_description(config, origin)
            (whole / CONFIG).write_text(json.dumps(description, indent=1))
            whole.replace(folder)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror or error}).") from None


def origin_of(path: Path) -> dict[str, Any]:
    """Return what a weights folder remembers of the file that it was made from."""
    return {"file": path.name, "sha256": sha256(path)}


def input_described(data: DataConfig) -> dict[str, Any]:
    """Return how images are made for a network, as the origin of a weights folder says it."""
    return {
        "interpolation": data.interpolation,
        "input": {"image_size": data.image_size, "crop_pct": data.crop_pct, "mean": data.mean, "std": data.std},
    }


def load_pretrained(folder: str | Path) -> TDFormer:
    """Make the network of a weights folder, in evaluation mode. Raises WeightsError if the folder holds a part of one only."""
    return network_of(read_weights(Path(folder)), Path(folder))


def network_of(found: Weights, folder: Path) -> TDFormer:
    """Make the network of weights that were read from `folder`, as load_pretrained does."""
    config, state = found.config, found.state
    with torch.device("meta"):  # compared before anything is allocated
        model = TDFormer(config)
    if absent := match(model.state_dict(), state).missing:
        raise WeightsError(
            f"{folder} holds a part of a network: {len(absent)} tensors are not in it (first: {absent[0]}); "
            f"give it to a run as `init`, which trains them."
        )
    check_exactly(model, state, f"weights {folder}")
    model = TDFormer(config)
    model.load_state_dict(state)
    if isinstance(found.origin.get("input"), dict):
        model.set_input(**found.origin["input"])
    return model.eval()


def is_weights_folder(path: Path) -> bool:
    """Tell whether a path is a weights folder, and no run directory or checkpoint."""
    return (path / CONFIG).is_file()


def start_from(model: TDFormer, folder: Path) -> list[str]:
    """Load a weights folder into a network that is to be trained. Return the names that start fresh.

    Those may be top-down weights, and the head if the folder has none. Raises WeightsError, with nothing loaded, for anything else.
    """
    state, fresh = check_start(model, folder)
    model.load_state_dict(state, strict=False)
    return fresh


def check_start(model: TDFormer, folder: Path) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Return what start_from would load, and the names that would start fresh. Raises what start_from raises."""
    return fitting(model, read_weights(folder), folder)


def fitting(model: TDFormer, weights: Weights, folder: Path) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Return what check_start returns, for weights that were read from `folder` already."""
    state = weights.state
    if other := [line for line in differences(weights.config.backbone, model.config.backbone) if not line.startswith("drop_path:")]:
        raise WeightsError(f"{folder} holds another backbone than the run's (model.backbone): {'; '.join(other)}; nothing was loaded.")
    found, topdown = match(model.state_dict(), state), model.topdown_parameters()
    new_head = not any(name.startswith("backbone.head.") for name in state)
    wrongly_missing = [
        name
        for name in found.missing
        if name not in topdown and not (new_head and name.startswith("backbone.head.")) and not _is_counter(name)
    ]
    if wrongly_missing or found.misshapen or found.unused:
        raise WeightsError(_of_another_architecture(folder, model.config, wrongly_missing, found.unused, found.misshapen))
    return state, found.missing


@dataclass(frozen=True)
class Weights:
    """A network, or a part of one, as a weights folder holds it."""

    config: ModelConfig
    origin: dict[str, Any]
    state: dict[str, torch.Tensor]


def read_weights(folder: Path) -> Weights:
    """Read a weights folder, and compare it with its SHA-256. Raises WeightsError."""
    try:
        description = json.loads((folder / CONFIG).read_text())
        written_as, tree, digest = description["format"], description.get("model"), description.get("sha256")
        origin = dict(description.get("origin", {}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if is_passing(error):
            raise unavailable(folder / CONFIG, error) from None
        raise WeightsError(
            f"{folder} is no weights folder ({CONFIG} cannot be read: {error}); make one by `tdformer checkpoint import` or `export`."
        ) from None
    if written_as != FORMAT:
        raise WeightsError(
            f"{folder / CONFIG} has the format {written_as!r}, this program reads {FORMAT!r}; export it again with this version."
        )
    config = checked(ModelConfig, tree, f"{folder / CONFIG} holds no network that can be made")
    state = read_safetensors(folder / WEIGHTS)
    if sha256(folder / WEIGHTS) != digest:
        raise WeightsError(f"{folder / WEIGHTS} is damaged: it does not match the SHA-256 in {CONFIG}; make the folder again.")
    check_sound(state, folder / WEIGHTS)
    return Weights(config, origin, state)


def _is_counter(name: str) -> bool:
    """Return whether a tensor is BatchNorm's count of batches. A fixed momentum never reads it, so a file may lack it."""
    return name.endswith(".num_batches_tracked")


def _of_another_architecture(path: Path, config: ModelConfig, missing: list[str], unused: list[str], misshapen: list[str]) -> str:
    backbone = config.backbone
    size = (
        f"{backbone.family} ({backbone.variant}), {backbone.embed_dims} dims, depths {list(backbone.depths)}, {config.num_classes} classes"
    )
    lines = [f"{path} is of another architecture than this {size}; nothing was loaded."]
    kinds = {
        "not in the file": missing,
        "in the file, without a place in the network": unused,
        "of another shape (name: in the file, in the network)": misshapen,
    }
    for kind, names in kinds.items():
        if names:
            more = f", … and {len(names) - LISTED} more" if len(names) > LISTED else ""
            lines.append(f"  {len(names)} {kind}: {', '.join(map(printable, names[:LISTED]))}{more}")
    if misshapen and not missing and not unused and all(line.startswith("head.") or ".head." in line for line in misshapen):
        lines.append("  Only the head differs: import with --head new for another number of classes.")
    return "\n".join(lines)
