"""What is not whole yet: a folder `.unfinished` within a data set's, held by one process at a time.

It keeps the recipe, and a record of each part that is done. A record appears after its part, so a part without one is done
again; the manifest appears last. So the same command goes on after a kill.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from data_pipelines.errors import DataError
from data_pipelines.formats.ffcv_file import BETON
from data_pipelines.formats.manifest import MANIFEST, RECIPE, UNFINISHED
from data_pipelines.storage.files import replace_file

LEFT_OUT = "left_out.tsv"


class LeftOut(NamedTuple):
    """A file that is no whole image, and why."""

    place: str
    reason: str


@dataclass(frozen=True)
class PartRecord:
    """A part that is done. bytes: the size of its file, by which a resume knows that it is still there.

    modified: of a file that others wrote, when it was, in nanoseconds; 0 for our own.
    """

    number: int
    samples: int
    bytes: int
    sha256: str
    left_out: list[LeftOut] = field(default_factory=list)
    modified: int = 0


def write_record(work: Path, record: PartRecord) -> None:
    replace_file(_record_path(work, record.number), lambda path: path.write_text(json.dumps(asdict(record))))


def read_record(work: Path, number: int, file: Path | None) -> PartRecord | None:
    """The record of a part that was done before, if its file is still the same. file: None if that cannot be looked at."""
    try:
        values: dict[str, Any] = json.loads(_record_path(work, number).read_text())
        record = PartRecord(**values | {"left_out": [LeftOut(*pair) for pair in values["left_out"]]})
        if file is None:
            return record
        stat = file.stat()
        return record if stat.st_size == record.bytes and record.modified in (0, stat.st_mtime_ns) else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _record_path(work: Path, number: int) -> Path:
    return work / f"part-{number:06d}.json"


def part_index(work: Path, number: int) -> Path:
    """Where the index of a part is kept, which is a tar shard."""
    return work / f"part-{number:06d}.npy"


def is_written(folder: Path) -> bool:
    """Whether there is a data set, whole, in a folder."""
    try:
        return (folder / MANIFEST).is_file()
    except OSError as error:
        raise DataError(f"{folder} cannot be used ({error.strerror}); choose another folder.") from None


@contextmanager
def working_folder(folder: Path, recipe: dict[str, Any]) -> Iterator[Path]:
    """The folder for what is unfinished, made or found again, and held against other processes."""
    work = folder / UNFINISHED
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (work.exists() or (folder / MANIFEST).exists()) and (there := _of_a_set(folder)):
            raise DataError(
                f"{folder} holds {there[0].name} but no manifest: it was not written here; choose another folder, "
                f"or, if nothing in it is needed, remove {folder} first."
            )
        work.mkdir(exist_ok=True)
        lock = (work / "lock").open("w")
    except OSError as error:
        raise DataError(f"{folder} cannot be made ({error.strerror}); choose another folder.") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DataError(f"another process is writing {folder}; wait for it, or choose another folder.") from None
        if (folder / MANIFEST).exists():
            raise DataError(f"another process has just finished {folder}; give the same command again, or choose another folder.")
        try:
            _check_recipe(work, recipe)
            for name in ("shard-*.tar", BETON, "index-*.npy", LEFT_OUT, MANIFEST):
                for left_behind in folder.glob(f".[0-9]*-{name}"):
                    left_behind.unlink()
        except OSError as error:
            raise cannot_be_written(folder, error) from None
        yield work


def cannot_be_written(path: Path, error: OSError) -> DataError:
    return DataError(f"{path} cannot be written ({error.strerror or error}); the same command goes on from here.")


def _of_a_set(folder: Path) -> list[Path]:
    """Files that a data set consists of, which would be written anew."""
    return sorted(path for name in ("shard-*.tar", BETON, "index-*.npy", LEFT_OUT) for path in folder.glob(name))


def _check_recipe(work: Path, recipe: dict[str, Any]) -> None:
    """Nothing that was made by another recipe may be kept. If nothing was finished, there is nothing to keep."""
    path, begun = work / RECIPE, work.parent
    try:
        before = json.loads(path.read_text()) if path.exists() and any(work.glob("part-*.json")) else recipe
    except ValueError:
        before = {}
    if other := difference(before, recipe):
        raise DataError(f"{begun} was begun otherwise ({other}); remove {begun}, or give what it was begun with to go on.")
    replace_file(path, lambda partial: partial.write_text(json.dumps(recipe)))


def difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What two recipes differ in, in words; "" if in nothing."""
    names = [name for name in now if before.get(name) != now[name]]
    told = [f"{name} {before.get(name)}, now {now[name]}" for name in names if name not in ("source", "classes")]
    return "; ".join(told + [f"another {name}" if name == "source" else f"other {name}" for name in names if name in ("source", "classes")])
