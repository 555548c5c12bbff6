"""Checks the output folder of an indexing run before any shard is read."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipelines.errors import DataError, UserError
from data_pipelines.formats.manifest import UNFINISHED, Manifest
from data_pipelines.formats.manifest_reader import read_manifest
from data_pipelines.prepare.class_names import numbered_class_names
from data_pipelines.prepare.shard_list import ShardList
from data_pipelines.prepare.working_folder import is_complete
from data_pipelines.storage.passing_trouble import reading
from data_pipelines.storage.shard_info import check_size


def check_output_folder(shards: ShardList, folder: Path) -> None:
    """Check that `folder` may be written to, and that local shards exist.

    Our messages sometimes advise to remove `folder`. So it must hold nothing but what indexing wrote.
    Raises UserError for a folder that holds the shards, lies among them, or holds other files. Raises DataError for missing shards, and
    UnavailableError if the folder cannot be looked at now.
    """
    with reading(folder):
        _check_output_folder(shards, folder)


def _check_output_folder(shards: ShardList, folder: Path) -> None:
    out, home = folder.resolve(), _shard_folder(shards)
    if home and (out.is_relative_to(home.resolve()) or any((home / name).resolve().is_relative_to(out) for name in shards.names)):
        raise UserError(f"{folder} and the folder of the shards, {home}, must not hold one another; choose another folder to write to.")
    if not shards.is_remote:
        shards.sizes()
    if is_complete(folder) or (folder / UNFINISHED).exists():
        return
    if others := sorted(path.name for path in folder.glob("*")):
        raise UserError(f"{folder} already holds {others[0]!a}; choose a new folder, or an empty one.")


def _shard_folder(shards: ShardList) -> Path | None:
    """The folder of the shards, or None if they are not on a file system of this machine."""
    if shards.is_remote and not shards.base.startswith("file:"):
        return None
    return Path(shards.base.removeprefix("file://"))


def index_recipe(shards: ShardList, classes: Sequence[str] | None) -> dict[str, Any]:
    """The values that identify an indexing run. A resumed run must have the same."""
    names = hashlib.sha256("\n".join(shards.names).encode()).hexdigest()
    return {"shards_at": shards.base, "source": names, "classes": None if classes is None else list(classes)}


def existing_manifest(shards: ShardList, folder: Path, classes: Sequence[str] | None) -> Manifest:
    """Read the manifest in `folder`. Raises DataError if it is not of these shards and classes, or if a shard has changed its size."""
    manifest = read_manifest(folder)
    if other := _difference(manifest, shards, classes):
        raise DataError(f"{folder} already holds another data set ({other}); choose another folder, or remove this one first.")
    for number, info in enumerate(manifest.shards):
        if path := shards.path(number):
            check_size(path, info, manifest.remedy(folder))
    return manifest


def _difference(manifest: Manifest, shards: ShardList, classes: Sequence[str] | None) -> str:
    if manifest.shards_at != shards.base:
        return f"its shards lie {f'at {manifest.shards_at}' if manifest.shards_at else 'within it'}"
    if [info.name for info in manifest.shards] != shards.names:
        return "of other shards"
    return "with other classes" if manifest.classes != list(classes or numbered_class_names(len(manifest.classes))) else ""
