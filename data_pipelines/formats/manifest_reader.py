"""Reads manifests, and refuses damaged or unsafe ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data_pipelines.errors import DataError, UserError
from data_pipelines.formats.manifest import MANIFEST, MANIFEST_VERSION, RECIPE, UNFINISHED, VERSION_WITH_SHARDS_AT, Manifest
from data_pipelines.formats.remedies import prepare_again
from data_pipelines.storage.locations import check_location, is_remote
from data_pipelines.storage.passing_trouble import SEE_TO_IT, read_error
from data_pipelines.storage.shard_info import ShardInfo


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest in a folder. Raises DataError if there is none, or if it is damaged or of another version.

    Raises UnavailableError if it cannot be read now.
    """
    path = folder / MANIFEST
    try:
        if not path.is_file():
            raise _missing_manifest(folder)
        return parse_manifest(path.read_bytes(), str(path), prepare_again(folder))
    except OSError as error:
        raise read_error(path, error, f"{path} cannot be read ({error.strerror}); {SEE_TO_IT}.") from None


def _missing_manifest(folder: Path) -> DataError:
    """Make the error for a folder without a manifest. Its advice depends on what the folder holds instead."""
    if inner := sorted(str(found.parent) for found in folder.glob(f"*/{MANIFEST}")):
        return DataError(f"{folder} is not a data set but holds some; give one of them: {', '.join(inner)}")
    if (folder / UNFINISHED).is_dir():
        activity, command = _interrupted_command(folder)
        return DataError(f"{folder} is not whole: its {activity} was cut short; give the same `tdformer data {command}` again to go on.")
    if not folder.is_dir():
        command = _command_that_writes(folder)
        return DataError(
            f"data folder {folder} does not exist; check its path and whether its disk is mounted, or write it with: {command}"
        )
    others = f"; or, for the shards in it that others wrote: tdformer data index {folder} OUT" if any(folder.glob("*.tar")) else ""
    return DataError(f"data folder {folder} has no manifest.json; write it with: {_command_that_writes(folder)}{others}")


def _command_that_writes(folder: Path) -> str:
    """Give the command that writes this folder, as far as its name tells: `prepare` writes OUT/train and OUT/val."""
    out = folder.parent if folder.name in ("train", "val") and folder.parent != Path() else "OUT"
    return f"tdformer data prepare SOURCE {out}"


def _interrupted_command(folder: Path) -> tuple[str, str]:
    """Tell from the recipe which command was interrupted: its activity, for a message, and its name."""
    try:
        indexing = b'"shards_at"' in (folder / UNFINISHED / RECIPE).read_bytes()
    except OSError:
        indexing = False
    return ("indexing", "index") if indexing else ("preparation", "prepare")


def parse_manifest(text: bytes, name: str, remedy: str) -> Manifest:
    """Parse the JSON text of a manifest. `name` and `remedy` are for messages. Raises DataError if the manifest cannot be used."""
    try:
        content = json.loads(text)
        if not isinstance(content, dict):
            raise TypeError("no JSON object")
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{name} is damaged ({error}); {remedy}.") from None
    if (version := content.get("version")) not in (MANIFEST_VERSION, VERSION_WITH_SHARDS_AT):
        raise DataError(
            f"{name} has version {version}, this program reads versions {MANIFEST_VERSION} and {VERSION_WITH_SHARDS_AT}; {remedy}."
        )
    try:
        manifest = _checked_manifest(content)
    except UserError as error:
        raise DataError(f"{name} cannot be used: {error}") from None
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{name} is damaged ({error!r}); {remedy}.") from None
    if not manifest.shards:
        raise DataError(f"{name} lists no shard; {remedy}.")
    return manifest


def _checked_manifest(content: dict[str, Any]) -> Manifest:
    """Raises KeyError, TypeError or ValueError for content that no manifest has."""
    shards = _checked_shards(content)
    if content["format"] not in ("wds", "ffcv") or content["kind"] not in ("images", "events"):
        raise ValueError(f"unknown format {content['format']!r} of {content['kind']!r}")
    classes, blocks = [str(name) for name in content["classes"]], [int(size) for size in content["blocks"]]
    if sum(blocks) != sum(shard.samples for shard in shards) or min(blocks, default=0) < 0:
        raise ValueError("its blocks and its shards hold different numbers of samples")
    kinds, rest = (content["format"], content["kind"]), (dict(content["recipe"]), int(content["left_out"]))
    return Manifest(*kinds, classes, shards, blocks, str(content["digest"]), *rest, _checked_shards_at(content))


def _checked_shards(content: dict[str, Any]) -> list[ShardInfo]:
    """Refuse names that lead out of the data set's folder: a manifest may come from anybody."""
    shards = [ShardInfo(str(s["name"]), int(s["samples"]), int(s["bytes"]), str(s["sha256"])) for s in content["shards"]]
    names = [shard.name for shard in shards]
    if unsafe := [name for name in names if not name or "/" in name or "\\" in name or name.startswith(".")]:
        raise ValueError(f"{unsafe[0]!r} is no name of a file in this folder")
    if twice := {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else None:
        raise ValueError(f"{min(twice)} is listed twice")
    if any(shard.samples < 0 or shard.bytes < 0 for shard in shards):
        raise ValueError("a negative size")
    return shards


def _checked_shards_at(content: dict[str, Any]) -> str | None:
    """Check the location of the shards as strictly as a location that a user gives: a manifest may come from anybody."""
    location = content.get("shards_at")
    if location is None:
        return None
    if not isinstance(location, str) or content["format"] != "wds":
        raise ValueError(f"shards_at {location!r} is no place of WebDataset shards")
    if not is_remote(check_location(location)) and not Path(location).is_absolute():
        raise ValueError(f"shards_at {location!r} is neither an absolute path nor a URL")
    return location
