"""WebDataset tar shards on disk: how one is written, and what its headers say.

A data set is one folder:

    shard-000000.tar …   members <key>.jpg|png, or <key>.npy for event frames, and <key>.cls (the class index as text)
    manifest.json        what it was made from, its classes, and for each shard its samples, bytes and SHA-256
    index-….npy          for each sample its shard, byte offset, size, label and key: a cache of the tar headers
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import webdataset

from data_pipelines.errors import DataError
from data_pipelines.files import replace_file, sha256
from data_pipelines.images import EXTENSION_OF
from data_pipelines.index import Index, check_index, find_index, keep_index
from data_pipelines.manifest import ShardInfo, prepare_again
from data_pipelines.sources.base import RawSample
from data_pipelines.sources.keys import is_storable

EXTENSIONS = {*EXTENSION_OF.values(), "npy"}


def shard_name(number: int) -> str:
    return f"shard-{number:06d}.tar"


def write_shard(path: Path, samples: Iterable[RawSample]) -> ShardInfo:
    """Write samples into one tar, which appears under its name when it is whole. The same samples give the same bytes."""
    written = 0

    def write(partial: Path) -> None:
        nonlocal written
        with partial.open("wb") as file, webdataset.TarWriter(file, encoder=False, mtime=0) as tar:
            for sample in samples:
                tar.write({"__key__": sample.key, sample.extension: sample.data, "cls": str(sample.label).encode()})
                written += 1

    replace_file(path, write)
    return ShardInfo(path.name, written, path.stat().st_size, sha256(path))


def load_index(folder: Path, shards: list[ShardInfo]) -> Index:
    """The saved index; made again from the tar headers, and saved, when there is none of these shards."""
    if index := find_index(folder, shards):
        return index
    index = Index.of((number, *row) for number, shard in enumerate(shards) for row in scan_shard(folder / shard.name, shard))
    check_index(folder, index, shards)
    if not len(index):
        raise DataError(f"{folder} holds no sample; {prepare_again(folder)}.")
    return keep_index(folder, shards, index)


def scan_shard(path: Path, shard: ShardInfo) -> Iterator[tuple[int, int, int, str]]:
    """(offset, size, label, key) of every sample of one tar, in its order."""
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if not member.isreg():
                    continue
                key, extension = _split_name(member.name, path)
                if extension in EXTENSIONS:
                    images[key] = (member.offset_data, member.size)
                elif extension == "cls":
                    labels[key] = _read_label(tar, member, path)
    except DataError:
        raise
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:  # tarfile reads some headers without looking
        raise DataError(f"shard {path} is no readable tar file ({error}); {prepare_again(path.parent)}.") from None
    if unpaired := sorted(images.keys() ^ labels.keys()):
        raise DataError(f"sample {unpaired[0]} in {path} lacks its image or its .cls label; {prepare_again(path.parent)}.")
    if len(images) != shard.samples:
        raise DataError(f"shard {path} holds {len(images)} samples, the manifest says {shard.samples}; {prepare_again(path.parent)}.")
    for key, (offset, size) in images.items():
        yield offset, size, labels[key], key


def _split_name(name: str, path: Path) -> tuple[str, str]:
    """Key and extension of a tar member, cut at the first dot of its last part as WebDataset does."""
    if not is_storable(name):
        raise DataError(f"{name!a} in {path} is no name for a sample; {prepare_again(path.parent)}.")
    key, _, extension = name.partition(".")
    return key, extension


def _read_label(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> int:
    file = tar.extractfile(member)
    text = file.read(20) if file else b""
    try:
        label = int(text)
    except ValueError:
        raise DataError(f"{member.name} in {path} holds {text!r}, not a class number; {prepare_again(path.parent)}.") from None
    if not -(2**31) <= label < 2**31:
        raise DataError(f"{member.name} in {path} holds {text!r}, not a class number; {prepare_again(path.parent)}.")
    return label
