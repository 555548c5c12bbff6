"""TODO."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from data_pipelines.errors import DataError
from data_pipelines.formats.index import Index
from data_pipelines.formats.wds_scanner import IMAGES, ShardRow, scan_tar
from data_pipelines.prepare.journal import PartRecord, part_index, read_record, write_record
from data_pipelines.prepare.shard_list import ShardList
from data_pipelines.prepare.working_folder import cannot_be_written
from data_pipelines.processes import each
from data_pipelines.storage.files import sha256
from data_pipelines.storage.remote_files import persistently, stream

MOST_UNNAMED = 100_000
"""Classes without names. A larger number is no class, and would make a long list of names."""
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
MEND = "mend the shard, or leave it out, and give the command again"


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
