"""Indexing the WebDataset shards of others: each is read once, where it lies, and the set then trains like one of our own.

Written are a manifest, which says where the shards lie, and an index. The shards themselves are never touched.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.errors import DataError, UserError
from data_pipelines.formats.index import Index, digest_of, index_name, joined
from data_pipelines.formats.manifest import UNFINISHED, Manifest, ShardInfo, check_size, read_manifest
from data_pipelines.formats.wds_shards import IMAGES, ShardRow, scan_tar
from data_pipelines.prepare.journal import PartRecord, cannot_be_written, is_written, part_index, read_record, working_folder, write_record
from data_pipelines.prepare.shard_lists import ShardList
from data_pipelines.processes import each
from data_pipelines.storage.files import sha256
from data_pipelines.storage.urls import persistently, stream

MOST_UNNAMED = 100_000
"""Classes without names. A larger number is no class, and would make a long list of names."""
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
MEND = "mend the shard, or leave it out, and give the command again"


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


def read_classes(path: Path) -> list[str]:
    """The names of the classes, one per line, in the order of their numbers from 0."""
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise DataError(f"{path} cannot be read ({reason}); give a text file with one class name per line.") from None
    if "" in names:
        raise DataError(f"{path} names no class in line {names.index('') + 1}; expected one name per line, for the numbers 0, 1, ….")
    return names


# --- before anything is read -------------------------------------------------------------------------------


def _check_place(shards: ShardList, folder: Path) -> None:
    """Whoever is told to remove `folder` must lose nothing but what was written by this module. Local shards must be there."""
    out, home = folder.resolve(), _home(shards)
    if home and (out.is_relative_to(home.resolve()) or any((home / name).resolve().is_relative_to(out) for name in shards.names)):
        raise UserError(f"{folder} and the folder of the shards, {home}, must not hold one another; choose another folder to write to.")
    if not shards.is_remote:
        shards.sizes()
    if is_written(folder) or (folder / UNFINISHED).exists():
        return
    if others := sorted(path.name for path in folder.glob("*")):
        raise UserError(f"{folder} already holds {others[0]!a}; choose a new folder, or an empty one.")


def _home(shards: ShardList) -> Path | None:
    """The folder of shards on a file system of this machine."""
    if shards.is_remote and not shards.base.startswith("file:"):
        return None
    return Path(shards.base.removeprefix("file://"))


def _recipe(shards: ShardList, classes: Sequence[str] | None) -> dict[str, Any]:
    names = hashlib.sha256("\n".join(shards.names).encode()).hexdigest()
    return {"shards_at": shards.base, "source": names, "classes": None if classes is None else list(classes)}


def _there_already(shards: ShardList, folder: Path, classes: Sequence[str] | None) -> Indexed:
    manifest = read_manifest(folder)
    if other := _difference(manifest, shards, classes):
        raise DataError(f"{folder} already holds another data set ({other}); choose another folder, or remove this one first.")
    for number, info in enumerate(manifest.shards):
        if path := shards.path(number):
            check_size(path, info, manifest.remedy(folder))
    shutil.rmtree(folder / UNFINISHED, ignore_errors=True)  # left by a kill between the manifest and the end
    return Indexed(manifest.samples, len(manifest.classes), manifest.samples, already_there=True)


def _difference(manifest: Manifest, shards: ShardList, classes: Sequence[str] | None) -> str:
    if manifest.shards_at != shards.base:
        return f"its shards lie {f'at {manifest.shards_at}' if manifest.shards_at else 'within it'}"
    if [info.name for info in manifest.shards] != shards.names:
        return "of other shards"
    return "with other classes" if manifest.classes != list(classes or _numbered(len(manifest.classes))) else ""


def _numbered(classes: int) -> list[str]:
    return [str(number) for number in range(classes)]


# --- reading the shards ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Job:
    """What the processes that read have in common. classes: how many were named."""

    shards: ShardList
    work: Path
    classes: int | None


def _read_all(job: _Job, processes: int, progress: Callable[[int], None]) -> tuple[list[PartRecord], int]:
    """The records of all shards, in order, and how many samples an earlier attempt had read."""
    for left_behind in job.work.glob("*.tar"):
        left_behind.unlink(missing_ok=True)
    numbers = range(len(job.shards.names))
    found = (read_record(job.work, number, job.shards.path(number)) for number in numbers)
    records = {record.number: record for record in found if record and _has_index(job.work, record)}
    kept = sum(record.samples for record in records.values())
    progress(len(records))
    for record in each(_read_shard, job, [number for number in numbers if number not in records], processes):
        records[record.number] = record
        progress(1)
    return [records[number] for number in numbers], kept


def _has_index(work: Path, record: PartRecord) -> bool:
    with suppress(OSError, ValueError):
        return len(Index.load(part_index(work, record.number))) == record.samples
    return False


def _read_shard(job: _Job, number: int) -> PartRecord:
    place = job.shards.place(number)
    with _at_hand(job, number) as (path, digest):
        _refuse_compressed(path, place)
        rows = scan_tar(path, MEND, images=IMAGES, place=place)
        stat = path.stat()
    _check_rows(rows, place, job.classes)
    record = PartRecord(number, len(rows), stat.st_size, digest, modified=0 if job.shards.is_remote else stat.st_mtime_ns)
    try:
        Index.of((number, *row) for row in rows).save(part_index(job.work, number))
        write_record(job.work, record)
    except OSError as error:
        raise cannot_be_written(job.work, error) from None
    return record


@contextmanager
def _at_hand(job: _Job, number: int) -> Iterator[tuple[Path, str]]:
    """The shard as a local file, for as long as it is looked at, and its SHA-256."""
    place = job.shards.place(number)
    if path := job.shards.path(number):
        try:
            digest = sha256(path)
        except OSError as error:
            raise DataError(f"shard {path} cannot be read ({error.strerror}); {MEND}.") from None
        yield path, digest
        return
    path = job.work / f"{os.getpid()}-{number:06d}.tar"
    try:
        yield path, persistently(lambda: _download(place, path))
    finally:
        path.unlink(missing_ok=True)


def _download(url: str, path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("wb") as file, closing(stream(url)) as chunks:
            for chunk in chunks:
                digest.update(chunk)
                file.write(chunk)
    except OSError as error:
        raise cannot_be_written(path, error) from None
    return digest.hexdigest()


def _refuse_compressed(path: Path, place: str) -> None:
    with path.open("rb") as file:
        start = file.read(8)
    for magic, name in COMPRESSED.items():
        if start.startswith(magic):
            raise DataError(f"shard {place} is compressed ({name}), and a sample in it is not one seek away; unpack it to a plain .tar.")


def _check_rows(rows: list[ShardRow], place: str, classes: int | None) -> None:
    if not rows:
        raise DataError(f"shard {place} holds no sample, which is <key>.jpg, .jpeg or .png and <key>.cls; {MEND}.")
    for *_, label, key in rows:
        if not 0 <= label < (MOST_UNNAMED if classes is None else classes):
            reason = f"and --classes names {classes}" if classes is not None else f"expected 0 to {MOST_UNNAMED - 1}"
            raise DataError(f"sample {key} in {place} has label {label}, {reason}; {MEND}.")


# --- when all are read -------------------------------------------------------------------------------------


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
