"""The manifest of a data set: the truth about which shards belong to it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_pipelines.errors import DataError
from data_pipelines.files import replace_file

MANIFEST = "manifest.json"
MANIFEST_VERSION = 1


@dataclass(frozen=True)
class ShardInfo:
    """One shard as the manifest describes it."""

    name: str
    samples: int
    bytes: int
    sha256: str


def write_manifest(folder: Path, recipe: dict[str, Any], shards: list[ShardInfo]) -> None:
    """recipe: what the set was made from; it holds at least `classes`, the class names in the order of their indices."""
    manifest = {"version": MANIFEST_VERSION, "recipe": recipe, "shards": [asdict(shard) for shard in shards]}
    replace_file(folder / MANIFEST, lambda path: path.write_text(json.dumps(manifest, indent=1)))


def read_recipe(folder: Path) -> dict[str, Any] | None:
    """What the set in `folder` was made from."""
    return _read_json(folder / MANIFEST).get("recipe")


def read_manifest(folder: Path) -> tuple[list[str], list[ShardInfo]]:
    path = folder / MANIFEST
    if not path.exists():
        if inner := sorted(str(found.parent) for found in folder.glob(f"*/{MANIFEST}")):
            raise DataError(f"{folder} is not a data set but holds some; give one of them: {', '.join(inner)}")
        state = "has no manifest.json" if folder.is_dir() else "does not exist"
        raise DataError(f"data folder {folder} {state}; write it with: tdformer data prepare SOURCE {folder.parent}")
    manifest = _read_json(path)
    if (version := manifest.get("version")) != MANIFEST_VERSION:
        raise DataError(f"{path} has version {version}, this program reads version {MANIFEST_VERSION}; {prepare_again(folder)}.")
    try:
        classes = [str(name) for name in manifest["recipe"]["classes"]]
        listed = [(shard["name"], shard["samples"], shard["bytes"], shard["sha256"]) for shard in manifest["shards"]]
        shards = [ShardInfo(str(name), int(samples), int(size), str(digest)) for name, samples, size, digest in listed]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error!r}); {prepare_again(folder)}.") from None
    if not shards:
        raise DataError(f"{path} lists no shard; {prepare_again(folder)}.")
    return classes, shards


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error}); {prepare_again(path.parent)}.") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} is damaged (no JSON object); {prepare_again(path.parent)}.")
    return content


def prepare_again(folder: Path) -> str:
    """The remedy for a set that is not whole."""
    return f"copy it again, or remove {folder} and prepare it again"


def check_size(path: Path, shard: ShardInfo) -> None:
    if not path.exists():
        raise DataError(f"shard {path} is missing; {prepare_again(path.parent)}.")
    if (size := path.stat().st_size) != shard.bytes:
        raise DataError(
            f"shard {path} has {size} bytes, the manifest says {shard.bytes}: it is truncated or was changed; {prepare_again(path.parent)}."
        )
