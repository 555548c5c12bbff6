"""Makes WebDataset shards that others wrote ready for training: writes a manifest and an index, and leaves the shards untouched."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.formats.index import Index, concatenate_indexes, dataset_digest, index_name
from data_pipelines.formats.manifest import UNFINISHED, Manifest
from data_pipelines.prepare.class_names import numbered_class_names
from data_pipelines.prepare.index_checks import check_output_folder, existing_manifest, index_recipe
from data_pipelines.prepare.journal import PartRecord, part_index
from data_pipelines.prepare.shard_list import ShardList
from data_pipelines.prepare.shard_scan import ScanJob, scan_shards
from data_pipelines.prepare.working_folder import is_complete, working_folder, write_error
from data_pipelines.storage.patience import SOME_PATIENCE, Patience
from data_pipelines.storage.shard_info import ShardInfo

UNUSED = "unused_members"
"""The entry of a manifest's recipe that counts the members which belong to no sample."""


@dataclass(frozen=True)
class IndexResult:
    """What a call of `index_shards` did.

    resumed: samples that an earlier, interrupted call had scanned. unused: members that belong to no sample, by extension.
    """

    samples: int
    classes: int
    resumed: int
    already_there: bool = False
    unused: dict[str, int] = field(default_factory=dict, compare=False)


def index_shards(
    shards: ShardList,
    folder: Path,
    classes: Sequence[str] | None = None,
    *,
    processes: int = 1,
    progress: Callable[[int], None] = lambda done: None,
    patience: Patience = SOME_PATIENCE,
    ignore_unused: bool = False,
) -> IndexResult:
    """Scan the shards once, and write their manifest and index into `folder`. After any interruption, the same call goes on.

    folder: a new folder, apart from the shards. Nothing is written if it holds this data set already.
    classes: the class names by number; None: classes are named "0", "1", …
    progress: is called with the number of shards that were done since its last call.
    patience: how long each process waits for a shard that cannot be read now.
    ignore_unused: accept members that look like images and belong to no sample.
    Raises DataError if the folder holds another data set, for a shard or sample that training could not read, and for images that no
    sample has. Images are not decoded. Raises UnavailableError for a shard that cannot be read now; the same call goes on later.
    """
    check_output_folder(shards, folder)
    if is_complete(folder):
        manifest = existing_manifest(shards, folder, classes)
        # A kill after the manifest was written, but before the working folder was removed, leaves the working folder.
        shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
        return IndexResult(manifest.samples, len(manifest.classes), manifest.samples, already_there=True, unused=_unused(manifest))
    with working_folder(folder, index_recipe(shards, classes)) as work:
        job = ScanJob(shards, work, None if classes is None else len(classes), patience, ignore_unused)
        records, resumed = scan_shards(job, processes, progress)
        manifest = _finish(shards, folder, records, classes)
        shutil.rmtree(work, ignore_errors=True)
    return IndexResult(manifest.samples, len(manifest.classes), resumed, unused=_unused(manifest))


def _unused(manifest: Manifest) -> dict[str, int]:
    return dict(manifest.recipe.get(UNUSED, {}))


def preview_indexing(shards: ShardList, folder: Path, classes: Sequence[str] | None = None) -> str:
    """Say in words what `index_shards` would do. Reads no shard and writes nothing. Raises DataError as `index_shards` would."""
    check_output_folder(shards, folder)
    if is_complete(folder):
        existing_manifest(shards, folder, classes)
        return "already there"
    return "would go on" if (folder / UNFINISHED).exists() else "would be indexed"


def _finish(shards: ShardList, folder: Path, records: list[PartRecord], classes: Sequence[str] | None) -> Manifest:
    """Write the index, then the manifest, which makes the data set complete."""
    infos = [ShardInfo(shards.names[record.number], record.samples, record.bytes, record.sha256) for record in records]
    blocks = [record.samples for record in records]
    try:
        index = concatenate_indexes([Index.load(part_index(folder / UNFINISHED, record.number)) for record in records])
        _check_unique_keys(index, shards, folder)
        names = list(classes or numbered_class_names(int(index["label"].max()) + 1))
        unused = sum((Counter(record.unused) for record in records), Counter[str]())
        recipe = {UNUSED: dict(unused)} if unused else {}
        manifest = Manifest("wds", "images", names, infos, blocks, dataset_digest(index, blocks), recipe, shards_at=shards.base)
        index.save(folder / index_name(infos))
        manifest.write(folder)
    except OSError as error:
        raise write_error(folder, error) from None
    return manifest


def _check_unique_keys(index: Index, shards: ShardList, folder: Path) -> None:
    keys = index["key"]
    order = keys.argsort(kind="stable")
    twins = np.flatnonzero(keys[order[1:]] == keys[order[:-1]])
    if len(twins):
        first, second = order[twins[0] : twins[0] + 2].tolist()
        here, there = (shards.location(int(index["shard"][sample])) for sample in (first, second))
        raise DataError(
            f"{here} and {there} both hold a sample {index.key_of(first)}; rename or remove one, "
            f"remove {folder} (no shard lies in it) and give the command again."
        )
