"""What is not whole yet: a folder `.unfinished` within a data set's, held by one process at a time.

It keeps the recipe, and a record of each part that is done. A record appears after its part, so a part without one is done
again; the manifest appears last. So the same command goes on after a kill.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

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
