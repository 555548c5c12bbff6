"""The manifest of a data set: the truth about what belongs to it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from stat import S_ISREG
from typing import Any, Literal

from data_pipelines.errors import DataError
from data_pipelines.files import replace_file

MANIFEST = "manifest.json"
MANIFEST_VERSION = 2
UNFINISHED = ".unfinished"
"""The folder of what is not whole yet: parts that were written, and their records."""

Kind = Literal["images", "events"]

Format = Literal["wds", "ffcv"]
"""wds: WebDataset tar shards; ffcv: one FFCV file."""


@dataclass(frozen=True)
class ShardInfo:
    """One file of samples as the manifest describes it."""

    name: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What belongs to a data set.

    blocks: samples that were stored together, in the order of storage; shuffling by blocks moves within them. WebDataset: the
    shards' samples. digest: of the samples' keys in their order, the same in every format. recipe: what the set was made from
    and how, for a repeated `data prepare` to compare. left_out: how many files were no whole image.
    """

    format: Format
    kind: Kind
    classes: list[str]
    shards: list[ShardInfo]
    blocks: list[int]
    digest: str
    recipe: dict[str, Any]
    left_out: int = 0

    @property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    def write(self, folder: Path) -> None:
        content = {"version": MANIFEST_VERSION, **asdict(self)}
        replace_file(folder / MANIFEST, lambda path: path.write_text(json.dumps(content, indent=1)))


def read_manifest(folder: Path) -> Manifest:
    """Raises DataError for a folder without one, and for one that is damaged or of another version."""
    path = folder / MANIFEST
    if not path.is_file():
        if inner := sorted(str(found.parent) for found in folder.glob(f"*/{MANIFEST}")):
            raise DataError(f"{folder} is not a data set but holds some; give one of them: {', '.join(inner)}")
        if (folder / UNFINISHED).is_dir():
            raise DataError(f"{folder} is not whole: its preparation was cut short; give the same `tdformer data prepare` again to go on.")
        state = "has no manifest.json" if folder.is_dir() else "does not exist"
        raise DataError(f"data folder {folder} {state}; write it with: tdformer data prepare SOURCE {folder.parent}")
    try:
        return parse_manifest(path.read_bytes(), str(path), prepare_again(folder))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); {prepare_again(folder)}.") from None


def parse_manifest(text: bytes, name: str, remedy: str) -> Manifest:
    try:
        content = json.loads(text)
        if not isinstance(content, dict):
            raise TypeError("no JSON object")
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{name} is damaged ({error}); {remedy}.") from None
    if (version := content.get("version")) != MANIFEST_VERSION:
        raise DataError(f"{name} has version {version}, this program reads version {MANIFEST_VERSION}; {remedy}.")
    try:
        manifest = _checked(content)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{name} is damaged ({error!r}); {remedy}.") from None
    if not manifest.shards:
        raise DataError(f"{name} lists no shard; {remedy}.")
    return manifest


def _checked(content: dict[str, Any]) -> Manifest:
    shards = [ShardInfo(str(s["name"]), int(s["samples"]), int(s["bytes"]), str(s["sha256"])) for s in content["shards"]]
    names = [shard.name for shard in shards]
    if unsafe := [name for name in names if not name or "/" in name or "\\" in name or name.startswith(".")]:
        raise ValueError(f"{unsafe[0]!r} is no name of a file in this folder")
    if twice := {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else None:
        raise ValueError(f"{min(twice)} is listed twice")
    if any(shard.samples < 0 or shard.bytes < 0 for shard in shards):
        raise ValueError("a negative size")
    if content["format"] not in ("wds", "ffcv") or content["kind"] not in ("images", "events"):
        raise ValueError(f"unknown format {content['format']!r} of {content['kind']!r}")
    classes, blocks = [str(name) for name in content["classes"]], [int(size) for size in content["blocks"]]
    if sum(blocks) != sum(shard.samples for shard in shards) or min(blocks, default=0) < 0:
        raise ValueError("its blocks and its shards hold different numbers of samples")
    kinds, rest = (content["format"], content["kind"]), (dict(content["recipe"]), int(content["left_out"]))
    return Manifest(*kinds, classes, shards, blocks, str(content["digest"]), *rest)


def prepare_again(folder: Path | str) -> str:
    """The remedy for a set that is not whole."""
    return f"copy it again, or remove {folder} and prepare it again"


def check_size(path: Path, shard: ShardInfo) -> None:
    try:
        stat = path.stat()
    except OSError as error:
        state = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise DataError(f"shard {path} {state}; {prepare_again(path.parent)}.") from None
    if not S_ISREG(stat.st_mode):
        raise DataError(f"shard {path} is no file; {prepare_again(path.parent)}.")
    if stat.st_size != shard.bytes:
        raise DataError(
            f"shard {path} has {stat.st_size} bytes, the manifest says {shard.bytes}: it is truncated or was changed; "
            f"{prepare_again(path.parent)}."
        )
