"""Where each sample of a data set lies, so that any one is read with one seek.

The index is a cache of what the tar headers and .cls members say; it is made again when it is missing or stale.
"""

from __future__ import annotations

import contextlib
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.files import replace_file
from data_pipelines.manifest import ShardInfo, prepare_again
from data_pipelines.sources import IMAGE_SUFFIXES

INDEX = "index.npz"
COLUMNS = ("shard", "offset", "size", "label", "key")
IMAGE_EXTENSIONS = set(IMAGE_SUFFIXES.values())


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


def load_index(folder: Path, shards: list[ShardInfo]) -> Index:
    try:
        with np.load(folder / INDEX, allow_pickle=False) as saved:
            if saved["sha256"].tolist() == [shard.sha256 for shard in shards]:
                return Index(*(saved[name] for name in COLUMNS))
    except Exception:  # missing, or damaged in any way that NumPy and zipfile can find: the tar headers hold all of it
        pass
    index = scan(folder, shards)
    with contextlib.suppress(OSError):  # a read-only data set is scanned at every start
        save_index(folder, shards, index)
    return index


def save_index(folder: Path, shards: list[ShardInfo], index: Index) -> None:
    columns = {name: getattr(index, name) for name in COLUMNS}
    hashes = np.array([shard.sha256 for shard in shards])

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            np.savez(file, sha256=hashes, **columns)

    replace_file(folder / INDEX, write)


def scan(folder: Path, shards: list[ShardInfo]) -> Index:
    rows = [(number, *row) for number, shard in enumerate(shards) for row in scan_shard(folder / shard.name, shard)]
    if not rows:
        raise DataError(f"{folder} holds no sample; {prepare_again(folder)}.")
    shard, offset, size, label, key = zip(*rows, strict=True)
    return Index(np.array(shard, np.int32), np.array(offset), np.array(size), np.array(label), np.array([text.encode() for text in key]))


def scan_shard(path: Path, shard: ShardInfo) -> Iterator[tuple[int, int, int, str]]:
    """(offset, size, label, key) of every sample of one tar, in its order."""
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                if not member.isreg():
                    continue
                if extension in IMAGE_EXTENSIONS:
                    images[key] = (member.offset_data, member.size)
                elif extension == "cls":
                    labels[key] = _read_label(tar, member, path)
    except tarfile.TarError as error:
        raise DataError(f"shard {path} is no readable tar file ({error}); {prepare_again(path.parent)}.") from None
    if unpaired := sorted(images.keys() ^ labels.keys()):
        raise DataError(f"sample {unpaired[0]} in {path} lacks its image or its .cls label; {prepare_again(path.parent)}.")
    if len(images) != shard.samples:
        raise DataError(f"shard {path} holds {len(images)} samples, the manifest says {shard.samples}; {prepare_again(path.parent)}.")
    for key, (offset, size) in images.items():
        yield offset, size, labels[key], key


def _read_label(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> int:
    file = tar.extractfile(member)
    text = file.read(20) if file else b""
    try:
        return int(text)
    except ValueError:
        raise DataError(f"{member.name} in {path} holds {text!r}, not a class number; {prepare_again(path.parent)}.") from None
