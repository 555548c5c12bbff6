"""TODO."""

from __future__ import annotations

from pathlib import Path

from data_pipelines.errors import DataError
from data_pipelines.formats.index import Index, check_index, find_index, keep_index
from data_pipelines.formats.manifest import Manifest
from data_pipelines.formats.wds_scanner import EXTENSIONS, IMAGES, ShardRow, scan_tar
from data_pipelines.storage.shard_info import ShardInfo


def load_index(folder: Path, manifest: Manifest) -> Index:
    """The saved index; made again from the tar headers, and saved, when there is none of these shards."""
    shards = manifest.shards
    if index := find_index(folder, shards):
        return index
    index = Index.of((number, *row) for number, shard in enumerate(shards) for row in scan_shard(folder, manifest, shard))
    check_index(folder, index, shards, manifest.remedy(folder))
    if not len(index):
        raise DataError(f"{folder} holds no sample; {manifest.remedy(folder)}.")
    return keep_index(folder, shards, index)


def scan_shard(folder: Path, manifest: Manifest, shard: ShardInfo) -> list[ShardRow]:
    """The samples of one shard of the set in `folder`, which must be as many as the manifest says."""
    path, remedy = shard_path(folder, manifest, shard), manifest.remedy(folder)
    rows = scan_tar(path, remedy, images=IMAGES if manifest.shards_at else EXTENSIONS)
    if len(rows) != shard.samples:
        raise DataError(f"shard {path} holds {len(rows)} samples, the manifest says {shard.samples}; {remedy}.")
    return rows


def shard_path(folder: Path, manifest: Manifest, shard: ShardInfo) -> Path:
    """Of a shard that lies on a local file system."""
    return Path(manifest.shards_at or folder) / shard.name
