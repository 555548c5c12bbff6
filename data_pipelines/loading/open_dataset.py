"""Opens a data set from a local folder or a URL."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_pipelines.errors import DataError, UserError
from data_pipelines.formats.ffcv_reader import FfcvReader, load_ffcv_index
from data_pipelines.formats.index import Index, check_index, find_index, index_name
from data_pipelines.formats.manifest import MANIFEST, Manifest
from data_pipelines.formats.manifest_reader import parse_manifest, read_manifest
from data_pipelines.formats.wds_index import load_wds_index, shard_path
from data_pipelines.formats.wds_reader import WdsReader
from data_pipelines.loading.dataset import DataSet
from data_pipelines.storage.cache_folder import CacheFolder
from data_pipelines.storage.files import replace_file
from data_pipelines.storage.locations import check_location, is_remote, join_location
from data_pipelines.storage.passing_trouble import reading
from data_pipelines.storage.remote_files import read_small
from data_pipelines.storage.shard_cache import ShardCache
from data_pipelines.storage.shard_files import CachedShardFiles, LocalShardFiles
from data_pipelines.storage.shard_info import ShardInfo, check_size

MAX_MANIFEST_BYTES, MAX_INDEX_BYTES = 2**28, 2**32
"""Larger remote files are refused."""
COPY_AGAIN = "copy the data set to its place again"


def open_dataset(location: str | Path, cache: CacheFolder | None = None, *, was_there: bool = False) -> DataSet:
    """Open the data set in a local folder or at a URL. Reads manifest and index, and checks the sizes of local shards.

    cache: needed for a URL, and for a folder whose shards are at a URL. was_there: the folder was read before, so that a missing one is
    taken for a lost mount.
    Raises DataError for a missing or empty folder, for a missing or truncated shard (with its name), and for a label that is no class.
    Raises UnavailableError for what cannot be read now, and UserError for a URL or a cache that cannot be used.
    """
    if isinstance(location, str) and is_remote(check_location(location)):
        data = _open_remote(location, cache)
    else:
        data = _open_local(Path(location), cache, was_there)
    if not len(data):
        raise DataError(f"{data.location} holds no sample; {data.manifest.remedy(data.location)}.")
    _check_labels(data)
    return data


def _open_local(folder: Path, cache: CacheFolder | None, was_there: bool) -> DataSet:
    if was_there:
        with reading(f"data folder {folder}", was_there=True):
            (folder / MANIFEST).stat()
    manifest = read_manifest(folder)
    if manifest.shards_at and is_remote(manifest.shards_at):
        return _open_indexed(folder, manifest, manifest.shards_at, cache)
    paths = [shard_path(folder, manifest, shard) for shard in manifest.shards]
    for path, shard in zip(paths, manifest.shards, strict=True):
        check_size(path, shard, manifest.remedy(folder))
    if manifest.format == "ffcv":
        index = load_ffcv_index(folder, manifest.shards)
        return DataSet(str(folder), manifest, index, FfcvReader(paths[0], index))
    index = load_wds_index(folder, manifest)
    return DataSet(str(folder), manifest, index, WdsReader(LocalShardFiles(paths), index))


def _open_indexed(folder: Path, manifest: Manifest, url: str, cache: CacheFolder | None) -> DataSet:
    """Open a data set whose manifest and index are in a local folder, and whose shards are at a URL."""
    cache, remedy = _require_cache(cache, url), manifest.remedy(folder)
    shards = _cached_shards(ShardCache(url, cache, remedy), manifest)
    if (index := find_index(folder, manifest.shards)) is None:
        raise DataError(f"{folder} lacks the index file of its shards, or it is damaged; {remedy}.")
    return DataSet(str(folder), manifest, index, WdsReader(shards, index))


def _open_remote(url: str, cache: CacheFolder | None) -> DataSet:
    cache = _require_cache(cache, url)
    manifest_url = join_location(url, MANIFEST)
    manifest = parse_manifest(read_small(manifest_url, MAX_MANIFEST_BYTES), manifest_url, COPY_AGAIN)
    if manifest.format == "ffcv":
        raise DataError(f"{url} is an FFCV file, which is read from a local disk only; copy it there, or stream WebDataset shards.")
    if manifest.shards_at:  # the author of a remote manifest must not choose what else this program reads
        raise DataError(
            f"{url} says that its shards lie at {manifest.shards_at}, and those of a URL must lie beside its manifest; "
            "index them into a local folder: tdformer data index SHARDS OUT."
        )
    shards = _cached_shards(ShardCache(url, cache), manifest)
    index = _remote_index(url, manifest.shards, cache)
    return DataSet(url, manifest, index, WdsReader(shards, index))


def _require_cache(cache: CacheFolder | None, url: str) -> CacheFolder:
    if cache is None:
        raise DataError(f"{url} is remote, and is read only where training or evaluation keep a shard cache; copy it to a local folder.")
    return cache


def _cached_shards(cache: ShardCache, manifest: Manifest) -> CachedShardFiles:
    cache.check(manifest.shards)
    return CachedShardFiles(cache, manifest.shards)


def _remote_index(url: str, shards: list[ShardInfo], cache: CacheFolder) -> Index:
    """Download the index into the cache folder, if it is not there. Its name holds the hash of the shards, so no other set has it."""
    name, folder = index_name(shards), cache.path
    if (index := find_index(folder, shards)) is None:
        content = read_small(join_location(url, name), MAX_INDEX_BYTES)
        try:
            with cache.local_errors(was_usable=False):
                replace_file(folder / name, lambda path: path.write_bytes(content))
                index = Index.load(folder / name)
        except UserError:
            raise
        except (ValueError, EOFError) as error:
            raise DataError(f"the index {join_location(url, name)} cannot be used ({error}); {COPY_AGAIN}.") from None
        check_index(url, index, shards, COPY_AGAIN)
    return index


def _check_labels(data: DataSet) -> None:
    labels = data.index["label"]
    outside = np.flatnonzero((labels < 0) | (labels >= len(data.classes)))
    if len(outside):
        first = int(outside[0])
        raise DataError(
            f"{data.describe(first)} has label {labels[first]}, but the manifest names {len(data.classes)} "
            f"classes ({len(outside)} such samples); {data.manifest.remedy(data.location)}."
        )
