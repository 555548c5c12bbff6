"""Writes WebDataset tar shards.

A data set is one folder:

    shard-000000.tar …   members <key>.jpg|png, or <key>.npy for event frames, and <key>.cls (the class index as text)
    manifest.json        the recipe and the classes, and for each shard its samples, bytes and SHA-256
    index-….npy          for each sample its shard, byte offset, size, label and key

Shards that others wrote have other names, and may lie elsewhere (see prepare/index_shards.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import webdataset

from data_pipelines.formats.sample import RawSample
from data_pipelines.storage.files import replace_file, sha256
from data_pipelines.storage.shard_info import ShardInfo


def shard_name(number: int) -> str:
    """The file name of shard `number`."""
    return f"shard-{number:06d}.tar"


def write_shard(path: Path, samples: Iterable[RawSample]) -> ShardInfo:
    """Write samples into one tar, which gets its name when it is complete. The same samples give the same bytes."""
    written = 0

    def write(partial: Path) -> None:
        nonlocal written
        with partial.open("wb") as file, webdataset.TarWriter(file, encoder=False, mtime=0) as tar:
            for sample in samples:
                tar.write({"__key__": sample.key, sample.extension: sample.data, "cls": str(sample.label).encode()})
                written += 1

    replace_file(path, write)
    return ShardInfo(path.name, written, path.stat().st_size, sha256(path))
