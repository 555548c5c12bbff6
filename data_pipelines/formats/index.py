"""Stores where each sample of a data set lies, so that any sample is read with one seek.

The index is one file of rows. It is mapped into memory, so that all loader processes of a machine share it. The hash in its name
is made of the shards' hashes, so that an index is never used with other shards.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from data_pipelines.errors import DataError, UnavailableError
from data_pipelines.storage.files import replace_file
from data_pipelines.storage.passing_trouble import is_passing, reading, unavailable
from data_pipelines.storage.shard_info import ShardInfo

COLUMNS = [("shard", "<i4"), ("offset", "<i8"), ("size", "<i8"), ("label", "<i4")]

Row = tuple[int, int, int, int, str]
"""The shard of a sample (its position in the manifest), the offset and size of its bytes, its label (class index), and its key."""


def row_type(key_bytes: int) -> np.dtype:
    """The type of one index row, for keys of at most `key_bytes` bytes."""
    return np.dtype([*COLUMNS, ("key", f"S{max(key_bytes, 1)}")])


class Index:
    """One row per sample, in the order of the shards. The rows are a structured array with the columns of `Row`; keys are UTF-8."""

    def __init__(self, rows: np.ndarray, path: Path | None = None) -> None:
        self.rows, self.path = rows, path

    @classmethod
    def from_rows(cls, rows: Iterable[Row]) -> Index:
        """Make an index in memory."""
        encoded = [(shard, offset, size, label, key.encode()) for shard, offset, size, label, key in rows]
        return cls(np.array(encoded, row_type(max((len(row[-1]) for row in encoded), default=1))))

    @classmethod
    def load(cls, path: Path) -> Index:
        """Map an index file into memory. Raises OSError if it cannot be read, and ValueError if it is no index.

        Raises UnavailableError if memory runs out, or if Python cannot parse the header now.
        """
        try:
            if not path.is_file():
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
            rows = np.lib.format.open_memmap(path, mode="r")
        except OSError:
            raise
        except Exception as error:  # NumPy parses the header as Python, which may raise anything for a damaged one
            if is_passing(error):
                raise unavailable(path, error) from None
            raise ValueError(f"{path} holds no index ({error})") from None
        if rows.ndim != 1 or "key" not in (rows.dtype.names or ()) or rows.dtype != row_type(rows.dtype["key"].itemsize):
            raise ValueError(f"{path} holds no index")
        return cls(np.asarray(rows), path)  # asarray keeps the mapping; NumPy's memmap type is slow to index

    def save(self, path: Path) -> None:
        """Write the index file. Raises OSError."""

        def write(partial: Path) -> None:
            with partial.open("wb") as file:
                np.save(file, self.rows, allow_pickle=False)

        replace_file(path, write)

    def __reduce__(self) -> tuple:
        """Pickle a loaded index as its path alone, so that a loader process maps the same file."""
        return (_load_again, (self.path,)) if self.path else (Index, (self.rows,))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, column: str) -> np.ndarray:
        return self.rows[column]

    def key_of(self, sample: int) -> str:
        """The key of a sample. Characters that cannot be printed, as in a damaged index, are escaped."""
        key: str = self.rows["key"][sample].decode(errors="backslashreplace")
        return key if key.isprintable() else key.encode("unicode_escape").decode()

    def label_of(self, sample: int) -> int:
        """The class index of a sample."""
        return int(self.rows["label"][sample])


def _load_again(path: Path) -> Index:
    """Map an index in another process. Raises UnavailableError if it cannot be read there."""
    with reading(path, was_there=True):
        return Index.load(path)


def concatenate_indexes(indexes: Sequence[Index]) -> Index:
    """Join indexes of one shard each. The shards are numbered from 0 in this order."""
    rows = np.concatenate([index.rows for index in indexes])
    rows["shard"] = np.repeat(np.arange(len(indexes)), [len(index) for index in indexes])
    return Index(rows)


def dataset_digest(index: Index, blocks: Sequence[int]) -> str:
    """Hash the samples' keys, their order, and the blocks. A sample order is valid for one digest only.

    Formats do not matter: the same samples give the same digest as WebDataset and as FFCV.
    """
    keys = index["key"]
    parts = (str(keys.dtype).encode(), np.ascontiguousarray(keys).tobytes(), np.array(blocks, "<i8").tobytes())
    return hashlib.sha256(b"".join(parts)).hexdigest()


def index_name(shards: list[ShardInfo]) -> str:
    """The file name of the index of these shards."""
    return f"index-{hashlib.sha256(''.join(shard.sha256 for shard in shards).encode()).hexdigest()[:16]}.npy"


def find_index(folder: Path, shards: list[ShardInfo]) -> Index | None:
    """Load the saved index of these shards. Returns None if there is none, or if it is damaged.

    Raises UnavailableError if it cannot be read now. It may be the only index of its set, and nobody shall make it again or remove it.
    """
    path = folder / index_name(shards)
    try:
        with reading(path):
            index = Index.load(path)
        check_index(folder, index, shards, remedy="")
    except UnavailableError:  # it is a ValueError too
        raise
    except (OSError, ValueError, EOFError):  # DataError is a ValueError
        return None
    return index


def save_index(folder: Path, shards: list[ShardInfo], index: Index) -> Index:
    """Save the index, and return it mapped from the file. In a read-only folder, return the given one and save nothing."""
    path = folder / index_name(shards)
    with contextlib.suppress(OSError):
        index.save(path)
        return Index.load(path)
    return index


def check_index(folder: Path | str, index: Index, shards: list[ShardInfo], remedy: str) -> None:
    """Raises DataError if a row points outside the shards, or if the number of rows is not that of the manifest."""
    expected = sum(shard.samples for shard in shards)
    if len(index) != expected:
        raise DataError(f"{folder} holds {len(index)} samples, its manifest says {expected}; {remedy}.")
    shard, offset, size = index["shard"], index["offset"], index["size"]
    bounds = np.array([shard.bytes for shard in shards])
    outside = (shard < 0) | (shard >= len(shards)) | (offset < 0) | (size < 0)
    outside |= size > bounds[np.where(outside, 0, shard)] - offset
    if outside.any():
        sample = int(np.flatnonzero(outside)[0])
        raise DataError(f"the index of {folder} points outside its shards for sample {sample}; {remedy}.")
