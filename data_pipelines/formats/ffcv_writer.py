"""Writes the parts of an FFCV file, each with pages of its own.

FFCV's own writer fills one file from many processes. When it is killed, it starts again from nothing. When a process meets a
damaged image, it waits for ever. So each part is written with FFCV's field and allocator alone, and `join_parts` puts the parts
together. The bytes do not depend on the number of processes.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.formats.ffcv_format import ALLOCATION, ROW
from data_pipelines.storage.files import replace_file

SMALLEST_PAGE, DEFAULT_PAGE = 2**21, 2**23
"""FFCV's smallest and default page in bytes. An image must fit into one page."""


class FfcvSample(NamedTuple):
    """One image to write: its key, label, pixels (uint8 [H, W, 3]), and whether it is stored as JPEG."""

    key: str
    label: int
    pixels: np.ndarray
    as_jpeg: bool


class FfcvPart(NamedTuple):
    """The tables of a part. Its pages are in a file of their own. Offsets count from the first byte of that file.

    metadata: FFCV's rows, one per sample: image (mode, width, height, data_ptr) and label.
    allocations: FFCV's rows (sample_id, ptr, size).
    keys: UTF-8 bytes.
    """

    metadata: np.ndarray
    allocations: np.ndarray
    keys: np.ndarray

    def save(self, path: Path) -> None:
        """Write the tables as an .npz file. Raises OSError."""

        def write(partial: Path) -> None:
            with partial.open("wb") as file:
                np.savez(file, **self._asdict())

        replace_file(path, write)

    @classmethod
    def load(cls, path: Path) -> FfcvPart:
        """Read tables that `save` wrote."""
        with np.load(path, allow_pickle=False) as saved:
            return cls(*(saved[name] for name in cls._fields))


def page_size(max_side: int | None) -> int:
    """The page size in bytes for images of at most `max_side` pixels per side. Small pages waste less at the end of each part."""
    if max_side is None:
        return DEFAULT_PAGE
    return max(SMALLEST_PAGE, 1 << (2 * 3 * max_side**2 - 1).bit_length())


def write_part(pages: Path, samples: Iterable[FfcvSample], *, max_side: int | None, quality: int) -> FfcvPart:
    """Write the images into the file `pages`, in order, and return the tables.

    max_side: larger images are shrunk to this long side in pixels (FFCV's max_resolution). quality: JPEG quality in percent.
    Raises DataError for an image larger than a page, and OSError if the disk is full.
    """
    from ffcv.fields import RGBImageField
    from ffcv.memory_allocator import MemoryAllocator

    fields = {jpeg: RGBImageField("jpg" if jpeg else "raw", jpeg_quality=quality) for jpeg in (True, False)}
    allocator = MemoryAllocator(str(pages), 0, page_size(max_side))
    pages.unlink(missing_ok=True)  # FFCV would append to the file of an interrupted attempt
    rows, keys = [], []
    allocator.__enter__()  # a `with` statement does not fit: FFCV's __enter__ returns None, and its __exit__ fails after an error
    for number, sample in enumerate(samples):
        row = np.zeros(1, ROW)
        allocator.set_current_sample(number)
        _encode(fields[sample.as_jpeg], row, sample, max_side, allocator)
        row["label"] = sample.label
        rows.append(row)
        keys.append(sample.key.encode())
    allocator.__exit__(None, None, None)
    if pages.stat().st_size != allocator.next_page_written.value * allocator.page_size:  # FFCV does not notice a short write
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return FfcvPart(concatenate_rows(rows), np.array(allocator.allocations, ALLOCATION), np.array(keys, "S"))


def _encode(field: Any, row: np.ndarray, sample: FfcvSample, max_side: int | None, allocator: Any) -> None:
    try:
        field.encode(row["image"], _shrink(sample.pixels, max_side), allocator.malloc)
    except ValueError as error:
        if "page size" not in str(error):
            raise
        raise DataError(
            f"sample {sample.key} is larger than FFCV's page of {allocator.page_size} bytes; store smaller images by --max-side."
        ) from None


def _shrink(pixels: np.ndarray, max_side: int | None) -> np.ndarray:
    """Shrink the long side to `max_side`. FFCV's own resizing fails for a very long image, whose short side it rounds to 0."""
    import cv2

    longest = max(pixels.shape[:2])
    if max_side is None or longest <= max_side:
        return pixels
    height, width = (max(1, round(side * max_side / longest)) for side in pixels.shape[:2])
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)


def concatenate_rows(tables: list[np.ndarray]) -> np.ndarray:
    """Join tables of FFCV rows. NumPy's concatenate is no use here: it drops the padding between the columns."""
    rows = np.zeros(sum(map(len, tables)), ROW)
    start = 0
    for table in tables:
        rows[start : start + len(table)] = table
        start += len(table)
    return rows
