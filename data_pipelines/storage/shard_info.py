"""Describes one shard of a data set, and checks that a local shard matches its description."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG

from data_pipelines.errors import DataError
from data_pipelines.storage.passing_trouble import SEE_TO_IT, read_error, unavailable


@dataclass(frozen=True)
class ShardInfo:
    """One file of samples: its name, number of samples, size in bytes and SHA-256 in hexadecimal."""

    name: str
    samples: int
    bytes: int
    sha256: str


def check_size(path: Path, shard: ShardInfo, remedy: str) -> None:
    """Raises DataError if the shard is missing, no regular file, or of another size than described. `remedy` is the advice for that.

    Raises UnavailableError if it cannot be looked at now, if it is a link to nothing, or if its whole folder is gone or
    empty, as the place of a lost mount is.
    """
    try:
        stat = path.stat()
    except OSError as error:
        if isinstance(error, FileNotFoundError) and (path.is_symlink() or _is_lost(path.parent)):
            raise unavailable(f"shard {path}", error) from None
        state = f"is missing; {remedy}" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror}); {SEE_TO_IT}"
        raise read_error(f"shard {path}", error, f"shard {path} {state}.") from None
    if not S_ISREG(stat.st_mode):
        raise DataError(f"shard {path} is no file; {remedy}.")
    if stat.st_size != shard.bytes:
        raise DataError(
            f"shard {path} has {stat.st_size} bytes, the manifest says {shard.bytes}: it is truncated or was changed; {remedy}."
        )


def _is_lost(folder: Path) -> bool:
    try:
        return next(folder.iterdir(), None) is None
    except OSError:
        return True
