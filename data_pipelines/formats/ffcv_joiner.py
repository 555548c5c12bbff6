"""Joins the parts of an FFCV data set into one file, and makes its index.

A data set is one folder:

    samples.beton    an FFCV file with the fields `image` (RGBImageField) and `label` (IntField); FFCV's own Loader reads it too
    manifest.json    the recipe and the classes, and the file's samples, bytes and SHA-256
    index-….npy      for each sample the offset and size of its image in the file, its label and its key
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import BinaryIO

import numpy as np

from data_pipelines.formats.ffcv_format import HEAD, new_head
from data_pipelines.formats.ffcv_writer import FfcvPart, concatenate_rows, page_size
from data_pipelines.formats.index import Index, row_type
from data_pipelines.storage.files import replace_file, sha256
from data_pipelines.storage.shard_info import ShardInfo

FFCV_FILE = "samples.beton"
"""File name of the FFCV file. `.beton` is FFCV's own suffix."""

COPY_BYTES = 2**22


def join_parts(folder: Path, parts: list[tuple[Path, FfcvPart]], max_side: int | None) -> tuple[ShardInfo, Index]:
    """Write the pages of all parts into one FFCV file in `folder`.

    parts: for each part the file with its pages, and its tables. Raises OSError.
    """
    metadata, allocations, data_start, data_end = _joined_tables(parts, page_size(max_side))
    head = new_head(len(metadata), page_size(max_side), data_end)

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            file.write(head.tobytes() + metadata.tobytes())
            file.seek(data_start)
            for pages, part in parts:
                if len(part.metadata):
                    _append(file, pages)
            file.write(allocations.tobytes())

    path = folder / FFCV_FILE
    replace_file(path, write)
    keys = np.concatenate([part.keys for _, part in parts])
    shard = ShardInfo(FFCV_FILE, len(metadata), path.stat().st_size, sha256(path))
    return shard, _make_index(metadata, allocations, keys)


def _joined_tables(parts: list[tuple[Path, FfcvPart]], page: int) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Join the tables, and move their pointers to where the pages will be. Returns also the first and last byte of the pages."""
    metadata = concatenate_rows([part.metadata for _, part in parts])
    allocations = np.concatenate([part.allocations for _, part in parts])
    counts = [len(part.metadata) for _, part in parts]
    sizes = [pages.stat().st_size if count else 0 for (pages, _), count in zip(parts, counts, strict=True)]
    data_start = -(-(HEAD.itemsize + metadata.nbytes) // page) * page
    moved_by = np.repeat(data_start + np.cumsum([0, *sizes[:-1]]), counts).astype("<u8")
    metadata["image"]["data_ptr"] += moved_by
    allocations["ptr"] += moved_by
    allocations["sample_id"] += np.repeat(np.cumsum([0, *counts[:-1]]), counts).astype("<u8")
    return metadata, allocations, data_start, data_start + sum(sizes)


def _append(file: BinaryIO, pages: Path) -> None:
    with pages.open("rb") as source:
        shutil.copyfileobj(source, file, COPY_BYTES)


def _make_index(metadata: np.ndarray, allocations: np.ndarray, keys: np.ndarray) -> Index:
    """Each sample has one allocation, that of its image, and both tables have the same order."""
    rows = np.zeros(len(metadata), row_type(keys.itemsize))
    rows["offset"], rows["size"] = metadata["image"]["data_ptr"], allocations["size"]
    rows["label"], rows["key"] = metadata["label"], keys
    return Index(rows)
