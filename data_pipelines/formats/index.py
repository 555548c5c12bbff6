"""Where each sample of a data set lies, so that any one is read with one seek.

The index is one file of rows, mapped into memory: all loader processes of a machine share it. Its name carries a digest of
the shards that it was made for, so that an index of other shards is never taken for theirs.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.storage.files import replace_file
from data_pipelines.storage.shard_info import ShardInfo

COLUMNS = [("shard", "<i4"), ("offset", "<i8"), ("size", "<i8"), ("label", "<i4")]

Row = tuple[int, int, int, int, str]
"""Of one sample: shard (its position in the manifest), offset and size of its bytes, label (class index), key."""


def row_type(key_bytes: int) -> np.dtype:
    """One row of an index whose longest key has so many bytes."""
    return np.dtype([*COLUMNS, ("key", f"S{max(key_bytes, 1)}")])


class Index:
    """One row per sample, in the order of the shards: a structured array with the columns of Row (keys are UTF-8 bytes)."""

    def __init__(self, rows: np.ndarray, path: Path | None = None) -> None:
        self.rows, self.path = rows, path

    @classmethod
    def of(cls, rows: Iterable[Row]) -> Index:
        encoded = [(shard, offset, size, label, key.encode()) for shard, offset, size, label, key in rows]
        return cls(np.array(encoded, row_type(max((len(row[-1]) for row in encoded), default=1))))

    @classmethod
    def load(cls, path: Path) -> Index:
        """Map an index file into memory. Raises OSError or ValueError if it is none."""
        try:
            if not path.is_file():
                raise FileNotFoundError(path)
            rows = np.lib.format.open_memmap(path, mode="r")
        except OSError:
            raise
        except Exception as error:  # of a damaged header NumPy raises whatever Python's tokenizer and parser do
            raise ValueError(f"{path} holds no index ({error})") from None
        if rows.ndim != 1 or "key" not in (rows.dtype.names or ()) or rows.dtype != row_type(rows.dtype["key"].itemsize):
            raise ValueError(f"{path} holds no index")
        return cls(np.asarray(rows), path)  # still mapped; NumPy's memmap type itself is slow to index

    def save(self, path: Path) -> None:
        def write(partial: Path) -> None:
            with partial.open("wb") as file:
                np.save(file, self.rows, allow_pickle=False)

        replace_file(path, write)

    def __reduce__(self) -> tuple:
        """Sent to a loader process as its path alone, where there is one."""
        return (Index.load, (self.path,)) if self.path else (Index, (self.rows,))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, column: str) -> np.ndarray:
        return self.rows[column]

    def key_of(self, sample: int) -> str:
        key: str = self.rows["key"][sample].decode(errors="backslashreplace")
        return key if key.isprintable() else key.encode("unicode_escape").decode()  # of a damaged index

    def label_of(self, sample: int) -> int:
        return int(self.rows["label"][sample])


def joined(indexes: Sequence[Index]) -> Index:
    """One index of several that have one shard each, which are numbered from 0 in their order."""
    rows = np.concatenate([index.rows for index in indexes])
    rows["shard"] = np.repeat(np.arange(len(indexes)), [len(index) for index in indexes])
    return Index(rows)


def digest_of(index: Index, blocks: Sequence[int]) -> str:
    """Of the samples and their order, the same in every format: a position in the data means something for this digest only."""
    keys = index["key"]
    parts = (str(keys.dtype).encode(), np.ascontiguousarray(keys).tobytes(), np.array(blocks, "<i8").tobytes())
    return hashlib.sha256(b"".join(parts)).hexdigest()


def index_name(shards: list[ShardInfo]) -> str:
    return f"index-{hashlib.sha256(''.join(shard.sha256 for shard in shards).encode()).hexdigest()[:16]}.npy"


def find_index(folder: Path, shards: list[ShardInfo]) -> Index | None:
    """The saved index, or None if there is none of these shards that can be read and fits them."""
    try:
        index = Index.load(folder / index_name(shards))
        check_index(folder, index, shards, remedy="")
    except (OSError, ValueError, EOFError):  # DataError among them: what the index says can be read from the shards again
        return None
    return index


def keep_index(folder: Path, shards: list[ShardInfo], index: Index) -> Index:
    """Save the index, and the one mapped from there; the given one if the folder is read-only (scanned at every start then)."""
    path = folder / index_name(shards)
    with contextlib.suppress(OSError):
        index.save(path)
        return Index.load(path)
    return index


def check_index(folder: Path | str, index: Index, shards: list[ShardInfo], remedy: str) -> None:
    """Every row must point into the shards, and there must be as many as the manifest says."""
    promised = sum(shard.samples for shard in shards)
    if len(index) != promised:
        raise DataError(f"{folder} holds {len(index)} samples, its manifest says {promised}; {remedy}.")
    shard, offset, size = index["shard"], index["offset"], index["size"]
    bounds = np.array([shard.bytes for shard in shards])
    outside = (shard < 0) | (shard >= len(shards)) | (offset < 0) | (size < 0)
    outside |= size > bounds[np.where(outside, 0, shard)] - offset
    if outside.any():
        sample = int(np.flatnonzero(outside)[0])
        raise DataError(f"the index of {folder} points outside its shards for sample {sample}; {remedy}.")
