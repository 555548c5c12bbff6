"""Looks for damage in a data set: compares shards with the manifest and the index, and decodes images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.formats.index import Index, find_index
from data_pipelines.formats.manifest import Manifest
from data_pipelines.formats.manifest_reader import read_manifest
from data_pipelines.formats.wds_index import scan_shard, shard_path
from data_pipelines.formats.wds_scanner import ShardRow
from data_pipelines.loading.dataset import DataSet
from data_pipelines.loading.open_dataset import open_dataset
from data_pipelines.processes import map_unordered
from data_pipelines.storage.files import sha256
from data_pipelines.storage.locations import is_remote
from data_pipelines.storage.passing_trouble import reading
from data_pipelines.storage.patience import Patience, patiently
from data_pipelines.storage.shard_info import ShardInfo, check_size

DECODED_SAMPLES = 1000
"""Number of images that are decoded unless all are asked for. They are a random choice with a fixed seed."""
SAMPLES_PER_JOB = 100

Progress = Callable[[int], None]


@dataclass(frozen=True)
class VerifyOptions:
    """What is checked besides the presence, sizes and sample counts of all shards."""

    hashes: bool = False
    all_images: bool = False
    patience: Patience = field(default_factory=Patience)
    """How long each process waits for a shard that cannot be read now."""


def verify_dataset(
    folder: Path, options: VerifyOptions | None = None, *, processes: int = 1, progress: Progress = lambda done: None
) -> list[str]:
    """Return one sentence per damage, each with the shard and the key. An empty list means that no damage was found.

    Images are decoded only if all shards are sound.
    progress: is called with the number of samples whose shard, or whose image, was checked since its last call. Both numbers add
    up to the samples of the manifest.
    Raises DataError if there is no sound manifest, or if the shards lie at a URL. Raises UnavailableError for what cannot be read now,
    which is no damage.
    """
    options = options or VerifyOptions()
    manifest = patiently(lambda: read_manifest(folder), options.patience)
    if manifest.shards_at and is_remote(manifest.shards_at):
        raise DataError(
            f"the shards of {folder} lie at {manifest.shards_at}, and verify reads local ones; copy them here and index the copy "
            "to look into them. Training compares each with its SHA-256 when it downloads it."
        )
    check = patiently(lambda: _ShardCheck(folder, manifest, options), options.patience)
    if damage := _check_shards(check, processes, progress):
        return damage
    try:
        data = patiently(lambda: open_dataset(folder), options.patience)
    except DataError as error:
        return [str(error)]
    if options.hashes and data.digest() != manifest.digest:
        damage.append(f"the index of {folder} names other samples, or in another order, than its manifest; {manifest.remedy(folder)}.")
    return damage + _check_images(data, options, processes, progress)


# --- shards ------------------------------------------------------------------------------------------------


class _ShardCheck:
    """What all processes that check shards share."""

    def __init__(self, folder: Path, manifest: Manifest, options: VerifyOptions) -> None:
        self.folder, self.manifest, self.options = folder, manifest, options
        self.index = find_index(folder, manifest.shards) if manifest.format == "wds" else None


def _check_shards(check: _ShardCheck, processes: int, progress: Progress) -> list[str]:
    damage = []
    for found, samples in map_unordered(_check_patiently, check, list(enumerate(check.manifest.shards)), processes):
        damage += found
        progress(samples)
    return damage


def _check_patiently(check: _ShardCheck, numbered: tuple[int, ShardInfo]) -> tuple[list[str], int]:
    return patiently(lambda: _check_shard(check, numbered), check.options.patience)


def _check_shard(check: _ShardCheck, numbered: tuple[int, ShardInfo]) -> tuple[list[str], int]:
    """Return the damage of one shard, and the number of its samples."""
    number, shard = numbered
    manifest, remedy = check.manifest, check.manifest.remedy(check.folder)
    path, damage = shard_path(check.folder, manifest, shard), []
    try:
        check_size(path, shard, remedy)
        with reading(f"shard {path}", was_there=True):
            if check.options.hashes and sha256(path) != shard.sha256:
                damage.append(f"shard {path} does not match its SHA-256 in the manifest; {remedy}.")
        if manifest.format == "wds":
            rows = scan_shard(check.folder, manifest, shard)
            damage += _check_index(check.index, number, rows, path) + _check_labels(rows, path, len(manifest.classes))
    except DataError as error:
        damage.append(str(error))
    return damage, shard.samples


def _check_index(index: Index | None, number: int, rows: list[ShardRow], path: Path) -> list[str]:
    """Compare the saved index of one shard with the shard's own headers."""
    if index is None or not (wrong := _first_difference(index.rows[index["shard"] == number], rows)):
        return []
    return [f"sample {wrong} in {path} is not where {index.path} says; remove that index, it is made again."]


def _first_difference(indexed: np.ndarray, rows: list[ShardRow]) -> str | None:
    """Return the key of the first sample that the index and the shard describe differently."""
    described = [(int(row["offset"]), int(row["size"]), int(row["label"]), row["key"]) for row in indexed]
    for position, (*row, key) in enumerate(rows):
        if described[position : position + 1] != [(*row, key.encode())]:
            return key
    return None


def _check_labels(rows: list[ShardRow], path: Path, classes: int) -> list[str]:
    return [
        f"sample {key} in {path} has label {label}, but there are {classes} classes." for *_, label, key in rows if not 0 <= label < classes
    ]


# --- images ------------------------------------------------------------------------------------------------


def _check_images(data: DataSet, options: VerifyOptions, processes: int, progress: Progress) -> list[str]:
    chosen, damage = np.arange(len(data)), []
    if not options.all_images and len(data) > DECODED_SAMPLES:
        chosen = np.sort(np.random.default_rng(0).choice(len(data), DECODED_SAMPLES, replace=False))
    jobs = np.array_split(chosen, -(-len(chosen) // SAMPLES_PER_JOB))
    for found, samples in map_unordered(_decode, (data, options.patience), jobs, processes):
        damage += found
        progress(samples)
    progress(len(data) - len(chosen))
    return damage


def _decode(shared: tuple[DataSet, Patience], samples: np.ndarray) -> tuple[list[str], int]:
    """Return the damage of some images, and their number."""
    (data, patience), damage = shared, []
    for sample in samples.tolist():
        try:
            patiently(lambda sample=sample: data.read(sample), patience)  # type: ignore[misc]
        except DataError as error:
            damage.append(str(error))
    return damage, len(samples)
