"""Looking for damage in a data set: shards against the manifest, samples against the index, images against the decoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.formats.index import Index, find_index
from data_pipelines.formats.manifest import Manifest
from data_pipelines.formats.manifest_reader import read_manifest
from data_pipelines.formats.wds_index import scan_shard, shard_path
from data_pipelines.loading.dataset import DataSet
from data_pipelines.loading.open_dataset import open_set
from data_pipelines.processes import each
from data_pipelines.storage.files import sha256
from data_pipelines.storage.locations import is_remote
from data_pipelines.storage.shard_info import ShardInfo, check_size

DECODED_SAMPLES = 1000
"""How many images are decoded where not all are asked for, chosen at random but the same every time."""


@dataclass(frozen=True)
class Check:
    """What to look at besides the presence, sizes and sample counts of all shards."""

    hashes: bool = False
    all_images: bool = False


def verify(
    folder: Path, check: Check | None = None, *, processes: int = 1, progress: Callable[[int], None] = lambda done: None
) -> list[str]:
    """Every damage that was found, one sentence each, naming shard and key. An empty list means whole.

    progress is called with the number of samples whose shard or image was looked at since its last call; of each there are
    as many as the manifest says. Raises DataError if there is no readable manifest, or if the shards lie at a URL.
    """
    check, manifest = check or Check(), read_manifest(folder)
    if manifest.shards_at and is_remote(manifest.shards_at):
        raise DataError(
            f"the shards of {folder} lie at {manifest.shards_at}, and verify reads local ones; copy them here and index the copy "
            "to look into them. Training compares each with its SHA-256 when it downloads it."
        )
    saved = find_index(folder, manifest.shards) if manifest.format == "wds" else None
    damage = []
    for found, samples in each(_look_at_shard, (folder, manifest, check, saved), list(enumerate(manifest.shards)), processes):
        damage += found
        progress(samples)
    if damage:
        return damage
    try:
        data = open_set(folder)
    except DataError as error:
        return [str(error)]
    if check.hashes and data.digest() != manifest.digest:
        damage.append(f"the index of {folder} names other samples, or in another order, than its manifest; {manifest.remedy(folder)}.")
    chosen = np.arange(len(data))
    if not check.all_images and len(data) > DECODED_SAMPLES:
        chosen = np.sort(np.random.default_rng(0).choice(len(data), DECODED_SAMPLES, replace=False))
    for found, samples in each(_decode, data, np.array_split(chosen, -(-len(chosen) // 100)), processes):
        damage += found
        progress(samples)
    progress(len(data) - len(chosen))
    return damage


def _look_at_shard(shared: tuple[Path, Manifest, Check, Index | None], numbered: tuple[int, ShardInfo]) -> tuple[list[str], int]:
    (folder, manifest, check, saved), (number, shard) = shared, numbered
    path, damage = shard_path(folder, manifest, shard), []
    try:
        check_size(path, shard, manifest.remedy(folder))
        if check.hashes and sha256(path) != shard.sha256:
            damage.append(f"shard {path} does not match its SHA-256 in the manifest; {manifest.remedy(folder)}.")
        if manifest.format == "wds":
            rows = scan_shard(folder, manifest, shard)
            if saved is not None and (wrong := _differing(saved.rows[saved["shard"] == number], rows)):
                damage.append(f"sample {wrong} in {path} is not where {saved.path} says; remove that index, it is made again.")
            for *_, label, key in rows:
                if not 0 <= label < len(manifest.classes):
                    damage.append(f"sample {key} in {path} has label {label}, but there are {len(manifest.classes)} classes.")
    except (DataError, OSError) as error:
        damage.append(str(error))
    return damage, shard.samples


def _differing(saved: np.ndarray, rows: list[tuple[int, int, int, str]]) -> str | None:
    """The key of the first sample of a shard of which the index says something else than the shard."""
    said = [(int(row["offset"]), int(row["size"]), int(row["label"]), row["key"]) for row in saved]
    for position, (*row, key) in enumerate(rows):
        if said[position : position + 1] != [(*row, key.encode())]:
            return key
    return None


def _decode(data: DataSet, samples: np.ndarray) -> tuple[list[str], int]:
    damage = []
    for sample in samples.tolist():
        try:
            data.read(sample)
        except DataError as error:
            damage.append(str(error))
    return damage, len(samples)
