"""A data set, opened: what the manifest says, where each sample lies, and how one is read, whatever the format and the place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.formats.ffcv_joiner import load_index as load_beton_index
from data_pipelines.formats.ffcv_reader import FfcvReader
from data_pipelines.formats.index import Index, check_index, find_index, index_name
from data_pipelines.formats.manifest import MANIFEST, Manifest
from data_pipelines.formats.manifest_reader import parse_manifest, read_manifest
from data_pipelines.formats.wds_index import load_index as load_wds_index
from data_pipelines.formats.wds_index import shard_path
from data_pipelines.formats.wds_reader import TarReader
from data_pipelines.loading.dataset import DataSet
from data_pipelines.storage.files import replace_file
from data_pipelines.storage.locations import check_location, is_remote, join
from data_pipelines.storage.remote_files import read_small
from data_pipelines.storage.shard_cache import ShardCache
from data_pipelines.storage.shard_files import CachedShards, LocalShards
from data_pipelines.storage.shard_info import ShardInfo, check_size

LARGEST_MANIFEST, LARGEST_INDEX = 2**28, 2**32
"""Bytes of a remote file that are read at most."""
COPY_AGAIN = "copy the data set to its place again"


@dataclass(frozen=True)
class Cache:
    """Where the shards of remote sets are kept, and how many bytes of them."""

    folder: Path
    limit_bytes: int


def open_set(location: str | Path, cache: Cache | None = None) -> DataSet:
    """Read manifest and index of a local folder or a URL. Local shards must exist with the size that the manifest gives.

    cache: needed for a URL, and for a folder whose shards lie at one. Raises DataError with the shard's name for a missing or
    empty folder, a missing, truncated or unreadable shard, and a label that is no class.
    """
    if isinstance(location, str) and is_remote(check_location(location)):
        opened = _open_remote(location, cache)
    else:
        opened = _open_local(Path(location), cache)
    if not len(opened):
        raise DataError(f"{opened.location} holds no sample; {opened.manifest.remedy(opened.location)}.")
    _check_labels(opened)
    return opened


def _open_local(folder: Path, cache: Cache | None) -> DataSet:
    manifest = read_manifest(folder)
    if manifest.shards_at and is_remote(manifest.shards_at):
        return _open_indexed(folder, manifest, manifest.shards_at, cache)
    paths = [shard_path(folder, manifest, shard) for shard in manifest.shards]
    for path, shard in zip(paths, manifest.shards, strict=True):
        check_size(path, shard, manifest.remedy(folder))
    if manifest.format == "ffcv":
        index = load_beton_index(folder, manifest.shards)
        return DataSet(str(folder), manifest, index, FfcvReader(paths[0], index))
    index = load_wds_index(folder, manifest)
    return DataSet(str(folder), manifest, index, TarReader(LocalShards(paths), index))


def _open_indexed(folder: Path, manifest: Manifest, url: str, cache: Cache | None) -> DataSet:
    """Manifest and index are here, the shards at a URL."""
    cache, remedy = _needed(cache, url), manifest.remedy(folder)
    shards = _cached(ShardCache(url, cache.folder, cache.limit_bytes, remedy), manifest)
    if (index := find_index(folder, manifest.shards)) is None:
        raise DataError(f"{folder} lacks the index file of its shards, or it is damaged; {remedy}.")
    return DataSet(str(folder), manifest, index, TarReader(shards, index))


def _open_remote(url: str, given: Cache | None) -> DataSet:
    cache = _needed(given, url)
    manifest = parse_manifest(read_small(join(url, MANIFEST), LARGEST_MANIFEST), join(url, MANIFEST), COPY_AGAIN)
    if manifest.format == "ffcv":
        raise DataError(f"{url} is an FFCV file, which is read from a local disk only; copy it there, or stream WebDataset shards.")
    if manifest.shards_at:  # who writes a remote manifest must not choose what else is read
        raise DataError(
            f"{url} says that its shards lie at {manifest.shards_at}, and those of a URL must lie beside its manifest; "
            "index them into a local folder: tdformer data index SHARDS OUT."
        )
    shards = _cached(ShardCache(url, cache.folder, cache.limit_bytes), manifest)
    index = _remote_index(url, manifest.shards, cache.folder)
    return DataSet(url, manifest, index, TarReader(shards, index))


def _needed(cache: Cache | None, url: str) -> Cache:
    if cache is None:
        raise DataError(f"{url} is remote, and is read only where training or evaluation keep a shard cache; copy it to a local folder.")
    return cache


def _cached(cache: ShardCache, manifest: Manifest) -> CachedShards:
    cache.check(manifest.shards)
    return CachedShards(cache, manifest.shards)


def _remote_index(url: str, shards: list[ShardInfo], folder: Path) -> Index:
    """Kept beside the cached shards, under a name that only this very set has."""
    name = index_name(shards)
    if (index := find_index(folder, shards)) is None:
        content = read_small(join(url, name), LARGEST_INDEX)
        try:
            replace_file(folder / name, lambda path: path.write_bytes(content))
            index = Index.load(folder / name)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"the index {join(url, name)} cannot be used ({error}); prepare the data set again.") from None
        check_index(url, index, shards, COPY_AGAIN)
    return index


def _check_labels(opened: DataSet) -> None:
    labels = opened.index["label"]
    outside = np.flatnonzero((labels < 0) | (labels >= len(opened.classes)))
    if len(outside):
        first = int(outside[0])
        raise DataError(
            f"{opened.describe(first)} has label {labels[first]}, but the manifest names {len(opened.classes)} "
            f"classes ({len(outside)} such samples); {opened.manifest.remedy(opened.location)}."
        )
