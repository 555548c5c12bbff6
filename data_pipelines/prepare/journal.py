"""Records which parts of a data set are done, so that an interrupted run does not repeat them.

A record is written after its part. A part without a record is therefore written again.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unicodedata import category

from data_pipelines.errors import UnavailableError
from data_pipelines.sources.base import LeftOut
from data_pipelines.storage.files import replace_file
from data_pipelines.storage.passing_trouble import reading

LEFT_OUT = "left_out.tsv"
"""File name of the list of what looks like a sample and is none: one line per file, its origin and the reason."""


@dataclass(frozen=True)
class PartRecord:
    """The record of a finished part.

    bytes: size of the part's file. A resumed run compares it with the file.
    modified: modification time, in nanoseconds, of a file that somebody else wrote; 0 for a file of ours.
    unused: number of members that belong to no sample, by extension, in a shard that somebody else wrote.
    """

    number: int
    samples: int
    bytes: int
    sha256: str
    left_out: list[LeftOut] = field(default_factory=list)
    modified: int = 0
    unused: dict[str, int] = field(default_factory=dict)


def write_record(work: Path, record: PartRecord) -> None:
    """Write the record of a part. Raises OSError."""
    replace_file(_record_path(work, record.number), lambda path: path.write_text(json.dumps(asdict(record))))


def read_record(work: Path, number: int, file: Path | None) -> PartRecord | None:
    """Read the record of a part. Returns None if there is none, or if the part's file has changed since.

    file: the part's file; None if it is remote and cannot be compared.
    Raises UnavailableError if one of them cannot be read now: the part is done, and shall not be made again for that.
    """
    try:
        with reading(_record_path(work, number)):
            values: dict[str, Any] = json.loads(_record_path(work, number).read_text())
            record = PartRecord(**values | {"left_out": [LeftOut(*pair) for pair in values["left_out"]]})
            if file is None:
                return record
            stat = file.stat()
        return record if stat.st_size == record.bytes and record.modified in (0, stat.st_mtime_ns) else None
    except UnavailableError:  # it is a ValueError too
        raise
    except (OSError, ValueError, TypeError, KeyError):
        return None


def write_left_out(folder: Path, left_out: list[LeftOut]) -> None:
    """Write the list of files that look like samples and are none, if there are any. Raises OSError."""
    if left_out:
        lines = "".join(f"{_one_line(origin)}\t{_one_line(reason)}\n" for origin, reason in left_out)
        replace_file(folder / LEFT_OUT, lambda path: path.write_text(lines, errors="backslashreplace"))


def _one_line(text: str) -> str:
    """Escape line breaks and other control characters: the name of a file may hold them."""
    return "".join(repr(letter)[1:-1] if category(letter) in ("Cc", "Zl", "Zp") else letter for letter in text)


def part_index(work: Path, number: int) -> Path:
    """The file that holds the index of part `number`, for parts that are tar shards."""
    return work / f"part-{number:06d}.npy"


def _record_path(work: Path, number: int) -> Path:
    return work / f"part-{number:06d}.json"
