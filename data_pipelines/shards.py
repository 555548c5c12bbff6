"""WebDataset tar shards on disk: written, indexed, opened and verified.

A data set is one folder:

    shard-000000.tar …   members <key>.jpg|png and <key>.cls (the class index as text)
    manifest.json        what it was made from, its classes, and for each shard its samples, bytes and SHA-256
    index.npz            for each sample its shard, byte offset, size, label and key

The manifest is the truth about which shards belong to the set. The index is a cache of what the tar
headers say, so that any sample can be read with one seek; it is made again when it is missing or stale.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import webdataset

from data_pipelines.errors import DataError
from data_pipelines.images import decode
from data_pipelines.sources import IMAGE_SUFFIXES, RawSample, Source

MANIFEST = "manifest.json"
INDEX = "index.npz"
MANIFEST_VERSION = 1
IMAGE_EXTENSIONS = set(IMAGE_SUFFIXES.values())


@dataclass(frozen=True)
class ShardInfo:
    """One shard as the manifest describes it."""

    name: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Index:
    """Where each sample lies. All arrays have one entry per sample, in the order of the shards."""

    shard: np.ndarray  # int32, position in the manifest
    offset: np.ndarray  # int64, first byte of the image within the tar
    size: np.ndarray  # int64, bytes of the image
    label: np.ndarray  # int64, class index
    key: np.ndarray  # bytes, UTF-8

    def __len__(self) -> int:
        return len(self.label)

    def key_of(self, sample: int) -> str:
        return self.key[sample].decode()


# --- writing -----------------------------------------------------------------------------------------------


def write_shards(
    source: Source, folder: Path, *, samples_per_shard: int = 1000, seed: int = 0, progress: Callable[[int], None] = lambda done: None
) -> bool:
    """Write a source into `folder`, shuffled by `seed`, as shards, index and manifest (last: a set without one is not whole).

    progress is called with the number of samples written since its last call. Returns False, and writes nothing, if
    this very set is there already. Raises DataError if another one is: nothing is ever overwritten.
    """
    recipe = {"source": source.fingerprint(), "classes": list(source.classes), "samples_per_shard": samples_per_shard, "seed": seed}
    if (folder / MANIFEST).exists():
        if _read_json(folder / MANIFEST).get("recipe") == recipe:
            ShardSet.open(folder)
            return False
        raise DataError(f"{folder} already holds another data set; choose another folder, or remove this one first.")
    folder.mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng(seed).permutation(len(source))
    shards = []
    for number, start in enumerate(range(0, len(source), samples_per_shard)):
        samples = [source[int(index)] for index in order[start : start + samples_per_shard]]
        shards.append(_write_shard(folder / f"shard-{number:06d}.tar", samples))
        progress(len(samples))
    _save_index(folder, shards, _scan(folder, shards))
    manifest = {"version": MANIFEST_VERSION, "recipe": recipe, "shards": [asdict(shard) for shard in shards]}
    _replace(folder / MANIFEST, lambda path: path.write_text(json.dumps(manifest, indent=1)))
    return True


def _write_shard(path: Path, samples: list[RawSample]) -> ShardInfo:
    def write(partial: Path) -> None:
        with partial.open("wb") as file, webdataset.TarWriter(file, encoder=False, mtime=0) as tar:
            for sample in samples:
                tar.write({"__key__": sample.key, sample.extension: sample.image, "cls": str(sample.label).encode()})

    _replace(path, write)
    return ShardInfo(path.name, len(samples), path.stat().st_size, sha256(path))


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under a name of this process alone and rename it: it is never seen half-written."""
    partial = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        write(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- opening -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ShardSet:
    """An opened data set: what the manifest says, and the index."""

    folder: Path
    classes: list[str]
    shards: list[ShardInfo]
    index: Index

    @classmethod
    def open(cls, folder: Path) -> ShardSet:
        """Read manifest and index; every shard must exist with the size that the manifest gives.

        Raises DataError with the shard's name for a missing or empty folder, a missing, truncated or
        unreadable shard, and a label that is no class.
        """
        classes, shards = _read_manifest(folder)
        for shard in shards:
            _check_size(folder / shard.name, shard)
        index = _load_index(folder, shards)
        opened = cls(folder, classes, shards, index)
        opened._check_labels()
        return opened

    def __len__(self) -> int:
        return len(self.index)

    def path_of(self, sample: int) -> Path:
        return self.folder / self.shards[self.index.shard[sample]].name

    def describe(self, sample: int) -> str:
        """Where a sample lies, for messages."""
        return f"sample {self.index.key_of(sample)} in {self.path_of(sample)}"

    def _check_labels(self) -> None:
        outside = np.flatnonzero((self.index.label < 0) | (self.index.label >= len(self.classes)))
        if len(outside):
            first = int(outside[0])
            raise DataError(
                f"{self.describe(first)} has label {self.index.label[first]}, but the manifest names {len(self.classes)} "
                f"classes ({len(outside)} such samples); {_again(self.folder)}."
            )


def _read_manifest(folder: Path) -> tuple[list[str], list[ShardInfo]]:
    path = folder / MANIFEST
    if not path.exists():
        state = "has no manifest.json" if folder.is_dir() else "does not exist"
        raise DataError(f"data folder {folder} {state}; write it with: tdformer data prepare SOURCE {folder.parent}")
    manifest = _read_json(path)
    if (version := manifest.get("version")) != MANIFEST_VERSION:
        raise DataError(f"{path} has version {version}, this program reads version {MANIFEST_VERSION}; {_again(folder)}.")
    try:
        classes = [str(name) for name in manifest["recipe"]["classes"]]
        listed = [(shard["name"], shard["samples"], shard["bytes"], shard["sha256"]) for shard in manifest["shards"]]
        shards = [ShardInfo(str(name), int(samples), int(size), str(digest)) for name, samples, size, digest in listed]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error!r}); {_again(folder)}.") from None
    if not shards:
        raise DataError(f"{path} lists no shard; {_again(folder)}.")
    return classes, shards


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error}); {_again(path.parent)}.") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} is damaged (no JSON object); {_again(path.parent)}.")
    return content


def _again(folder: Path) -> str:
    """The remedy for a set that is not whole."""
    return f"copy it again, or remove {folder} and prepare it again"


def _check_size(path: Path, shard: ShardInfo) -> None:
    if not path.exists():
        raise DataError(f"shard {path} is missing; {_again(path.parent)}.")
    if (size := path.stat().st_size) != shard.bytes:
        raise DataError(
            f"shard {path} has {size} bytes, the manifest says {shard.bytes}: it is truncated or was changed; {_again(path.parent)}."
        )


# --- the index ---------------------------------------------------------------------------------------------


def _load_index(folder: Path, shards: list[ShardInfo]) -> Index:
    try:
        with np.load(folder / INDEX, allow_pickle=False) as saved:
            if saved["sha256"].tolist() == [shard.sha256 for shard in shards]:
                return Index(*(saved[name] for name in ("shard", "offset", "size", "label", "key")))
    except Exception:  # missing, or damaged in any way that NumPy and zipfile can find: the tar headers hold all of it
        pass
    index = _scan(folder, shards)
    with contextlib.suppress(OSError):  # a read-only data set is scanned at every start
        _save_index(folder, shards, index)
    return index


def _save_index(folder: Path, shards: list[ShardInfo], index: Index) -> None:
    columns = {name: getattr(index, name) for name in ("shard", "offset", "size", "label", "key")}
    hashes = np.array([shard.sha256 for shard in shards])

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            np.savez(file, sha256=hashes, **columns)

    _replace(folder / INDEX, write)


def _scan(folder: Path, shards: list[ShardInfo]) -> Index:
    rows = [(number, *row) for number, shard in enumerate(shards) for row in _scan_shard(folder / shard.name, shard)]
    shard, offset, size, label, key = zip(*rows, strict=True)
    return Index(np.array(shard, np.int32), np.array(offset), np.array(size), np.array(label), np.array([text.encode() for text in key]))


def _scan_shard(path: Path, shard: ShardInfo) -> Iterator[tuple[int, int, int, str]]:
    """(offset, size, label, key) of every sample of one tar, in its order."""
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                if extension in IMAGE_EXTENSIONS:
                    images[key] = (member.offset_data, member.size)
                elif extension == "cls":
                    labels[key] = _read_label(tar, member, path)
    except tarfile.TarError as error:
        raise DataError(f"shard {path} is no readable tar file ({error}); {_again(path.parent)}.") from None
    if unpaired := sorted(images.keys() ^ labels.keys()):
        raise DataError(f"sample {unpaired[0]} in {path} lacks its image or its .cls label; {_again(path.parent)}.")
    if len(images) != shard.samples:
        raise DataError(f"shard {path} holds {len(images)} samples, the manifest says {shard.samples}; {_again(path.parent)}.")
    for key, (offset, size) in images.items():
        yield offset, size, labels[key], key


def _read_label(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> int:
    file = tar.extractfile(member)
    text = file.read(20) if file else b""
    try:
        return int(text)
    except ValueError:
        raise DataError(f"{member.name} in {path} holds {text!r}, not a class number; {_again(path.parent)}.") from None


# --- verifying ---------------------------------------------------------------------------------------------


def count_samples(folder: Path) -> int:
    """How many samples the manifest promises."""
    return sum(shard.samples for shard in _read_manifest(folder)[1])


def verify(folder: Path, progress: Callable[[int], None] = lambda done: None) -> list[str]:
    """Every damage of a data set: hashes of all shards, and every image decoded. An empty list means whole.

    progress is called with the number of samples checked since its last call.
    """
    classes, shards = _read_manifest(folder)
    damage = []
    for shard in shards:
        path = folder / shard.name
        try:
            _check_size(path, shard)
            if sha256(path) != shard.sha256:
                damage.append(f"shard {path} does not match its SHA-256 in the manifest.")
            damage += _undecodable(path, shard, len(classes))
        except DataError as error:
            damage.append(str(error))
        progress(shard.samples)
    return damage


def _undecodable(path: Path, shard: ShardInfo, classes: int) -> Iterator[str]:
    with path.open("rb") as file:
        for offset, size, label, key in _scan_shard(path, shard):
            if not 0 <= label < classes:
                yield f"sample {key} in {path} has label {label}, but there are {classes} classes."
            file.seek(offset)
            try:
                decode(file.read(size))
            except DataError as error:
                yield f"sample {key} in {path}: {error}"
