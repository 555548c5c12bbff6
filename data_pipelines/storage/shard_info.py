"""Describes one shard of a data set, and checks that a local shard matches its description."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG

from data_pipelines.errors import DataError


@dataclass(frozen=True)
class ShardInfo:
    """One file of samples: its name, number of samples, size in bytes and SHA-256 in hexadecimal."""

    name: str
    samples: int
    bytes: int
    sha256: str


def check_size(path: Path, shard: ShardInfo, remedy: str) -> None:
    """Raises DataError, ending in `remedy`, if the shard is missing, no regular file, or of another size than described."""
    try:
        stat = path.stat()
    except OSError as error:
        state = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise DataError(f"shard {path} {state}; {remedy}.") from None
    if not S_ISREG(stat.st_mode):
        raise DataError(f"shard {path} is no file; {remedy}.")
    if stat.st_size != shard.bytes:
        raise DataError(
            f"shard {path} has {stat.st_size} bytes, the manifest says {shard.bytes}: it is truncated or was changed; {remedy}."
        )
