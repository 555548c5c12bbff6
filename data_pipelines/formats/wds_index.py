"""Loads the index of a WebDataset, or makes it again from the headers of the shards."""

from __future__ import annotations

from pathlib import Path

from data_pipelines.errors import DataError
from data_pipelines.formats.index import Index, check_index, find_index, save_index
from data_pipelines.formats.manifest import Manifest
from data_pipelines.formats.wds_scanner import EXTENSIONS, IMAGES, ShardRow, scan_tar
from data_pipelines.storage.shard_info import ShardInfo


def load_wds_index(folder: Path, manifest: Manifest) -> Index:
    """Load the saved index. If none fits these shards, scan them and save a new one. Raises DataError for a damaged shard."""
    shards = manifest.shards
    if index := find_index(folder, shards):
        return index
    index = Index.from_rows((number, *row) for number, shard in enumerate(shards) for row in scan_shard(folder, manifest, shard))
    check_index(folder, index, shards, manifest.remedy(folder))
    if not len(index):
        raise DataError(f"{folder} holds no sample; {manifest.remedy(folder)}.")
    return save_index(folder, shards, index)


def scan_shard(folder: Path, manifest: Manifest, shard: ShardInfo) -> list[ShardRow]:
    """List the samples of one local shard. Raises DataError if they are not as many as the manifest says."""
    path, remedy = shard_path(folder, manifest, shard), manifest.remedy(folder)
    rows = scan_tar(path, remedy, images=IMAGES if manifest.shards_at else EXTENSIONS)
    if len(rows) != shard.samples:
        raise DataError(f"shard {path} holds {len(rows)} samples, the manifest says {shard.samples}; {remedy}.")
    return rows


def shard_path(folder: Path, manifest: Manifest, shard: ShardInfo) -> Path:
    """The path of a local shard."""
    return Path(manifest.shards_at or folder) / shard.name
