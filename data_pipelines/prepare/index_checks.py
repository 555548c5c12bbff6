"""TODO."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipelines.errors import DataError, UserError
from data_pipelines.formats.manifest import UNFINISHED, Manifest
from data_pipelines.formats.manifest_reader import read_manifest
from data_pipelines.prepare.class_names import _numbered
from data_pipelines.prepare.index_shards import Indexed
from data_pipelines.prepare.shard_list import ShardList
from data_pipelines.prepare.working_folder import is_written
from data_pipelines.storage.shard_info import check_size


def _check_place(shards: ShardList, folder: Path) -> None:
    """Whoever is told to remove `folder` must lose nothing but what was written by this module. Local shards must be there."""
    out, home = folder.resolve(), _home(shards)
    if home and (out.is_relative_to(home.resolve()) or any((home / name).resolve().is_relative_to(out) for name in shards.names)):
        raise UserError(f"{folder} and the folder of the shards, {home}, must not hold one another; choose another folder to write to.")
    if not shards.is_remote:
        shards.sizes()
    if is_written(folder) or (folder / UNFINISHED).exists():
        return
    if others := sorted(path.name for path in folder.glob("*")):
        raise UserError(f"{folder} already holds {others[0]!a}; choose a new folder, or an empty one.")


def _home(shards: ShardList) -> Path | None:
    """The folder of shards on a file system of this machine."""
    if shards.is_remote and not shards.base.startswith("file:"):
        return None
    return Path(shards.base.removeprefix("file://"))


def _recipe(shards: ShardList, classes: Sequence[str] | None) -> dict[str, Any]:
    names = hashlib.sha256("\n".join(shards.names).encode()).hexdigest()
    return {"shards_at": shards.base, "source": names, "classes": None if classes is None else list(classes)}


def _there_already(shards: ShardList, folder: Path, classes: Sequence[str] | None) -> Indexed:
    manifest = read_manifest(folder)
    if other := _difference(manifest, shards, classes):
        raise DataError(f"{folder} already holds another data set ({other}); choose another folder, or remove this one first.")
    for number, info in enumerate(manifest.shards):
        if path := shards.path(number):
            check_size(path, info, manifest.remedy(folder))
    shutil.rmtree(folder / UNFINISHED, ignore_errors=True)  # left by a kill between the manifest and the end
    return Indexed(manifest.samples, len(manifest.classes), manifest.samples, already_there=True)


def _difference(manifest: Manifest, shards: ShardList, classes: Sequence[str] | None) -> str:
    if manifest.shards_at != shards.base:
        return f"its shards lie {f'at {manifest.shards_at}' if manifest.shards_at else 'within it'}"
    if [info.name for info in manifest.shards] != shards.names:
        return "of other shards"
    return "with other classes" if manifest.classes != list(classes or _numbered(len(manifest.classes))) else ""
