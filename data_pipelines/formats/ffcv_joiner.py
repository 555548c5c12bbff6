"""TODO."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import BinaryIO

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.formats.ffcv_format import HEAD, new_head
from data_pipelines.formats.ffcv_writer import Part, _joined, page_size
from data_pipelines.formats.index import Index, check_index, find_index, row_type
from data_pipelines.formats.remedies import prepare_again
from data_pipelines.storage.files import replace_file, sha256
from data_pipelines.storage.shard_info import ShardInfo

BETON = "samples.beton"


def join_parts(folder: Path, parts: list[tuple[Path, Part]], max_side: int | None) -> tuple[ShardInfo, Index]:
    """Put the parts' pages into one FFCV file in `folder`, and make its index."""
    metadata = _joined([part.metadata for _, part in parts])
    page = page_size(max_side)
    data_start = -(-(HEAD.itemsize + metadata.nbytes) // page) * page
    allocations = np.concatenate([part.allocations for _, part in parts])
    sizes = [pages.stat().st_size if len(part.metadata) else 0 for pages, part in parts]
    counts = [len(part.metadata) for _, part in parts]
    moved_by = np.repeat(data_start + np.cumsum([0, *sizes[:-1]]), counts).astype("<u8")
    metadata["image"]["data_ptr"] += moved_by
    allocations["ptr"] += moved_by
    allocations["sample_id"] += np.repeat(np.cumsum([0, *counts[:-1]]), counts).astype("<u8")
    head = new_head(len(metadata), page, data_start + sum(sizes))

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            file.write(head.tobytes() + metadata.tobytes())
            file.seek(data_start)
            for pages, part in parts:
                if len(part.metadata):
                    _append(file, pages)
            file.write(allocations.tobytes())

    path = folder / BETON
    replace_file(path, write)
    keys = np.concatenate([part.keys for _, part in parts])
    shard = ShardInfo(BETON, len(metadata), path.stat().st_size, sha256(path))
    return shard, _index(metadata, allocations, keys)


def _append(file: BinaryIO, pages: Path) -> None:
    with pages.open("rb") as source:
        shutil.copyfileobj(source, file, 2**22)


def _index(metadata: np.ndarray, allocations: np.ndarray, keys: np.ndarray) -> Index:
    """Each sample has one allocation, that of its image, in the order of the samples."""
    rows = np.zeros(len(metadata), row_type(keys.itemsize))
    rows["offset"], rows["size"] = metadata["image"]["data_ptr"], allocations["size"]
    rows["label"], rows["key"] = metadata["label"], keys
    return Index(rows)


def load_index(folder: Path, shards: list[ShardInfo]) -> Index:
    """The saved index. An FFCV file holds no keys, so it cannot be made again. Raises DataError if there is none that fits."""
    if len(shards) != 1:
        raise DataError(f"{folder} names {len(shards)} FFCV files, and a set is one; {prepare_again(folder)}.")
    index = find_index(folder, shards)
    if index is None:
        raise DataError(f"{folder} lacks the index file of its {shards[0].name}, or it is damaged; {prepare_again(folder)}.")
    check_index(folder, index, shards, prepare_again(folder))
    return index
