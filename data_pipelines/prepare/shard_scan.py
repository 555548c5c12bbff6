"""Reads WebDataset shards that others wrote, one process per shard, and records the index of each."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from data_pipelines.errors import DataError, UnavailableError
from data_pipelines.formats.index import Index
from data_pipelines.formats.wds_scanner import IMAGES, ShardRow, scan_members
from data_pipelines.prepare.journal import PartRecord, part_index, read_record, write_record
from data_pipelines.prepare.shard_list import ShardList
from data_pipelines.prepare.working_folder import write_error
from data_pipelines.processes import map_unordered
from data_pipelines.storage.files import sha256
from data_pipelines.storage.passing_trouble import read_error, reading
from data_pipelines.storage.patience import Patience, patiently
from data_pipelines.storage.remote_files import stream_bytes, with_retries

COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
"""First bytes of compressed files, and the program that writes them."""

MAX_UNNAMED_CLASSES = 100_000
"""Labels must be smaller where no classes are named. A larger label is no class, and the list of class names would become huge."""

REMEDY = "mend the shard, or leave it out, and give the command again"


@dataclass(frozen=True)
class ScanJob:
    """What all scanning processes share. `classes` is the number of named classes; None: no classes are named.

    patience: how long each process waits for a shard that cannot be read now.
    ignore_unused: accept members that look like images and belong to no sample.
    """

    shards: ShardList
    work: Path
    classes: int | None
    patience: Patience = field(default_factory=Patience)
    ignore_unused: bool = False


def scan_shards(job: ScanJob, processes: int, progress: Callable[[int], None]) -> tuple[list[PartRecord], int]:
    """Scan all shards that have no record yet.

    Returns the records of all shards in order, and the number of samples that an earlier attempt had scanned.
    """
    _remove_partial_downloads(job.work)
    numbers = range(len(job.shards.names))
    found = (read_record(job.work, number, job.shards.path(number)) for number in numbers)
    records = {record.number: record for record in found if record and _has_index(job.work, record)}
    resumed = sum(record.samples for record in records.values())
    progress(len(records))
    for record in map_unordered(_scan_patiently, job, [number for number in numbers if number not in records], processes):
        records[record.number] = record
        progress(1)
    return [records[number] for number in numbers], resumed


def _remove_partial_downloads(work: Path) -> None:
    for partial in work.glob("*.tar"):
        partial.unlink(missing_ok=True)


def _has_index(work: Path, record: PartRecord) -> bool:
    path = part_index(work, record.number)
    try:
        with reading(path):
            return len(Index.load(path)) == record.samples
    except UnavailableError:  # it is a ValueError too
        raise
    except (OSError, ValueError):
        return False


def _scan_patiently(job: ScanJob, number: int) -> PartRecord:
    return patiently(lambda: _scan_shard(job, number), job.patience)


def _scan_shard(job: ScanJob, number: int) -> PartRecord:
    """Write the index of one shard, then its record."""
    location = job.shards.location(number)
    with _local_copy(job, number) as (path, digest):
        _refuse_compressed(path, location)
        scan = scan_members(path, REMEDY, images=IMAGES, name=location)
        with reading(f"shard {location}", was_there=True):
            stat = path.stat()
    if not job.ignore_unused:
        _refuse_lost_images(scan.lost, location)
    _check_rows(scan.rows, location, job.classes)
    modified = 0 if job.shards.is_remote else stat.st_mtime_ns
    record = PartRecord(number, len(scan.rows), stat.st_size, digest, modified=modified, unused=scan.unused)
    try:
        Index.from_rows((number, *row) for row in scan.rows).save(part_index(job.work, number))
        write_record(job.work, record)
    except OSError as error:
        raise write_error(job.work, error) from None
    return record


@contextmanager
def _local_copy(job: ScanJob, number: int) -> Iterator[tuple[Path, str]]:
    """Give the shard as a local file, and its SHA-256. A remote shard is downloaded, and removed afterwards."""
    location = job.shards.location(number)
    if path := job.shards.path(number):
        try:
            digest = sha256(path)
        except OSError as error:
            raise read_error(f"shard {path}", error, f"shard {path} cannot be read ({error.strerror}); {REMEDY}.", was_there=True) from None
        yield path, digest
        return
    path = job.work / f"{os.getpid()}-{number:06d}.tar"
    try:
        yield path, with_retries(lambda: _download(location, path))
    finally:
        path.unlink(missing_ok=True)


def _download(url: str, path: Path) -> str:
    """Download a file, and return its SHA-256."""
    digest = hashlib.sha256()
    try:
        with path.open("wb") as file, closing(stream_bytes(url)) as chunks:
            for chunk in chunks:
                digest.update(chunk)
                file.write(chunk)
    except OSError as error:
        raise write_error(path, error) from None
    return digest.hexdigest()


def _refuse_compressed(path: Path, location: str) -> None:
    with reading(f"shard {location}", was_there=True), path.open("rb") as file:
        start = file.read(8)
    for magic, name in COMPRESSED.items():
        if start.startswith(magic):
            raise DataError(f"shard {location} is compressed ({name}), and a sample in it is not one seek away; unpack it to a plain .tar.")


def _refuse_lost_images(lost: list[str], location: str) -> None:
    if lost:
        raise DataError(
            f"shard {location} holds {len(lost)} members that look like images and belong to no sample, such as {lost[0]}; rename or "
            "remove them, or leave them out on purpose: --ignore-unused."
        )


def _check_rows(rows: list[ShardRow], location: str, classes: int | None) -> None:
    if not rows:
        raise DataError(f"shard {location} holds no sample, which is <key>.jpg, .jpeg or .png and <key>.cls; {REMEDY}.")
    for *_, label, key in rows:
        if not 0 <= label < (MAX_UNNAMED_CLASSES if classes is None else classes):
            reason = f"and --classes names {classes}" if classes is not None else f"expected 0 to {MAX_UNNAMED_CLASSES - 1}"
            raise DataError(f"sample {key} in {location} has label {label}, {reason}; {REMEDY}.")
