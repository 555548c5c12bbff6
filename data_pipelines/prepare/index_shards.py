"""Indexing the WebDataset shards of others: each is read once, where it lies, and the set then trains like one of our own.

Written are a manifest, which says where the shards lie, and an index. The shards themselves are never touched.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.formats.index import Index, digest_of, index_name, joined
from data_pipelines.formats.manifest import UNFINISHED, Manifest
from data_pipelines.prepare.class_names import _numbered
from data_pipelines.prepare.index_checks import _check_place, _recipe, _there_already
from data_pipelines.prepare.journal import PartRecord, part_index
from data_pipelines.prepare.shard_list import ShardList
from data_pipelines.prepare.shard_scan import _Job, _read_all
from data_pipelines.prepare.working_folder import cannot_be_written, is_written, working_folder
from data_pipelines.storage.shard_info import ShardInfo


@dataclass(frozen=True)
class Indexed:
    """What the set holds now. kept: samples of shards that an earlier attempt had read."""

    samples: int
    classes: int
    kept: int
    already_there: bool = False


def index_shards(
    shards: ShardList,
    folder: Path,
    classes: Sequence[str] | None = None,
    *,
    processes: int = 1,
    progress: Callable[[int], None] = lambda done: None,
) -> Indexed:
    """Write manifest and index of `shards` into `folder`, a new one apart from theirs. Interrupted in any way, the same call goes on.

    classes: their names by number; None: they are called by their numbers. progress is called with the number of shards done
    since its last call. Writes nothing if this set is there already. Raises DataError if another one is, and for any shard or
    sample that training could not read, but images are not decoded.
    """
    _check_place(shards, folder)
    if is_written(folder):
        return _there_already(shards, folder, classes)
    with working_folder(folder, _recipe(shards, classes)) as work:
        records, kept = _read_all(_Job(shards, work, None if classes is None else len(classes)), processes, progress)
        manifest = _finish(shards, folder, records, classes)
        shutil.rmtree(work, ignore_errors=True)
    return Indexed(manifest.samples, len(manifest.classes), kept)


def state_of(shards: ShardList, folder: Path, classes: Sequence[str] | None = None) -> str:
    """What `index_shards` would do, in words. Raises DataError as it would, but does not read the shards."""
    _check_place(shards, folder)
    if is_written(folder):
        _there_already(shards, folder, classes)
        return "already there"
    return "would go on" if (folder / UNFINISHED).exists() else "would be indexed"


def _finish(shards: ShardList, folder: Path, records: list[PartRecord], classes: Sequence[str] | None) -> Manifest:
    infos = [ShardInfo(shards.names[record.number], record.samples, record.bytes, record.sha256) for record in records]
    blocks = [record.samples for record in records]
    try:
        index = joined([Index.load(part_index(folder / UNFINISHED, record.number)) for record in records])
        _refuse_same_keys(index, shards, folder)
        names = list(classes or _numbered(int(index["label"].max()) + 1))
        manifest = Manifest("wds", "images", names, infos, blocks, digest_of(index, blocks), {}, shards_at=shards.base)
        index.save(folder / index_name(infos))
        manifest.write(folder)
    except OSError as error:
        raise cannot_be_written(folder, error) from None
    return manifest


def _refuse_same_keys(index: Index, shards: ShardList, folder: Path) -> None:
    keys = index["key"]
    order = keys.argsort(kind="stable")
    twins = np.flatnonzero(keys[order[1:]] == keys[order[:-1]])
    if len(twins):
        first, second = order[twins[0] : twins[0] + 2].tolist()
        here, there = (shards.place(int(index["shard"][sample])) for sample in (first, second))
        raise DataError(
            f"{here} and {there} both hold a sample {index.key_of(first)}; rename or remove one, "
            f"remove {folder} (no shard lies in it) and give the command again."
        )
