"""WebDataset tar shards on disk: written, opened and verified.

A data set is one folder:

    shard-000000.tar …   members <key>.jpg|png and <key>.cls (the class index as text)
    manifest.json        what it was made from, its classes, and for each shard its samples, bytes and SHA-256
    index.npz            for each sample its shard, byte offset, size, label and key
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import webdataset

from data_pipelines.errors import DataError
from data_pipelines.files import replace_file, sha256
from data_pipelines.images import decode
from data_pipelines.manifest import MANIFEST, ShardInfo, check_size, prepare_again, read_manifest, read_recipe, write_manifest
from data_pipelines.shard_index import Index, load_index, save_index, scan, scan_shard
from data_pipelines.sources import RawSample, Source


def write_shards(
    source: Source, folder: Path, *, samples_per_shard: int = 1000, seed: int = 0, progress: Callable[[int], None] = lambda done: None
) -> bool:
    """Write a source into `folder`, shuffled by `seed`, as shards, index and manifest (last: a set without one is not whole).

    progress is called with the number of samples written since its last call. Returns False, and writes nothing, if
    this very set is there already. Raises DataError if another one is: nothing is ever overwritten.
    """
    recipe = {"source": source.fingerprint(), "classes": list(source.classes), "samples_per_shard": samples_per_shard, "seed": seed}
    if (folder / MANIFEST).exists():
        if read_recipe(folder) == recipe:
            ShardSet.open(folder)
            return False
        raise DataError(f"{folder} already holds another data set; choose another folder, or remove this one first.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder} cannot be made ({error.strerror}); choose another folder.") from None
    if there := sorted(folder.glob("shard-*.tar")):
        raise DataError(f"{folder} holds {there[0].name} but no manifest, perhaps from an attempt cut short; remove {folder} first.")
    order = np.random.default_rng(seed).permutation(len(source))
    shards = []
    for number, start in enumerate(range(0, len(source), samples_per_shard)):
        samples = [source[int(index)] for index in order[start : start + samples_per_shard]]
        shards.append(_write_shard(folder / f"shard-{number:06d}.tar", samples))
        progress(len(samples))
    save_index(folder, shards, scan(folder, shards))
    write_manifest(folder, recipe, shards)
    return True


def _write_shard(path: Path, samples: list[RawSample]) -> ShardInfo:
    def write(partial: Path) -> None:
        with partial.open("wb") as file, webdataset.TarWriter(file, encoder=False, mtime=0) as tar:
            for sample in samples:
                tar.write({"__key__": sample.key, sample.extension: sample.image, "cls": str(sample.label).encode()})

    replace_file(path, write)
    return ShardInfo(path.name, len(samples), path.stat().st_size, sha256(path))


@dataclass(frozen=True)
class ShardSet:
    """An opened data set: what the manifest says, and the index."""

    folder: Path
    classes: list[str]
    shards: list[ShardInfo]
    index: Index

    @classmethod
    def open(cls, folder: Path) -> ShardSet:
        """Read manifest and index; every shard must exist with the size that the manifest gives.

        Raises DataError with the shard's name for a missing or empty folder, a missing, truncated or
        unreadable shard, and a label that is no class.
        """
        classes, shards = read_manifest(folder)
        for shard in shards:
            check_size(folder / shard.name, shard)
        index = load_index(folder, shards)
        opened = cls(folder, classes, shards, index)
        opened._check_labels()
        return opened

    def __len__(self) -> int:
        return len(self.index)

    def path_of(self, sample: int) -> Path:
        return self.folder / self.shards[self.index.shard[sample]].name

    def describe(self, sample: int) -> str:
        """Where a sample lies, for messages."""
        return f"sample {self.index.key_of(sample)} in {self.path_of(sample)}"

    def _check_labels(self) -> None:
        outside = np.flatnonzero((self.index.label < 0) | (self.index.label >= len(self.classes)))
        if len(outside):
            first = int(outside[0])
            raise DataError(
                f"{self.describe(first)} has label {self.index.label[first]}, but the manifest names {len(self.classes)} "
                f"classes ({len(outside)} such samples); {prepare_again(self.folder)}."
            )


def count_samples(folder: Path) -> int:
    """How many samples the manifest promises."""
    return sum(shard.samples for shard in read_manifest(folder)[1])


def verify(folder: Path, progress: Callable[[int], None] = lambda done: None) -> list[str]:
    """Every damage of a data set: hashes of all shards, and every image decoded. An empty list means whole.

    progress is called with the number of samples checked since its last call.
    """
    classes, shards = read_manifest(folder)
    damage = []
    for shard in shards:
        path = folder / shard.name
        try:
            check_size(path, shard)
            if sha256(path) != shard.sha256:
                damage.append(f"shard {path} does not match its SHA-256 in the manifest.")
            damage += _undecodable(path, shard, len(classes))
        except DataError as error:
            damage.append(str(error))
        progress(shard.samples)
    return damage


def _undecodable(path: Path, shard: ShardInfo, classes: int) -> Iterator[str]:
    with path.open("rb") as file:
        for offset, size, label, key in scan_shard(path, shard):
            if not 0 <= label < classes:
                yield f"sample {key} in {path} has label {label}, but there are {classes} classes."
            file.seek(offset)
            try:
                decode(file.read(size))
            except DataError as error:
                yield f"sample {key} in {path}: {error}"
