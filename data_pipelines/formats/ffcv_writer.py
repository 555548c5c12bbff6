"""FFCV files on disk: written in parts that survive a kill, joined into one .beton, and opened again.

A data set is one folder:

    samples.beton    an FFCV file with the fields `image` (RGBImageField) and `label` (IntField); FFCV's own Loader reads it too
    manifest.json    what it was made from, its classes, and the file's samples, bytes and SHA-256
    index-….npy      for each sample the offset and size of its image in the file, its label and its key

FFCV's own writer fills one file from many processes: killed, it starts again from nothing, and it waits for ever for a process
that met a bad image. So each part is written by FFCV's field and allocator alone, into pages of its own, and the parts are put
together by moving their pointers. The bytes do not depend on the number of processes.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.formats.ffcv_format import ALLOCATION, ROW
from data_pipelines.storage.files import replace_file

SMALLEST_PAGE, USUAL_PAGE = 2**21, 2**23
"""Bytes. FFCV's smallest page, and its default. No image may be larger than a page."""


class StoredSample(NamedTuple):
    """What goes into a part."""

    key: str
    label: int
    pixels: np.ndarray  # uint8 [H, W, 3]
    as_jpeg: bool


class Part(NamedTuple):
    """A part's tables; its pages lie in a file beside them. Offsets count from the part's own first byte."""

    metadata: np.ndarray  # one row per sample, as FFCV stores them: image (mode, width, height, data_ptr), label
    allocations: np.ndarray  # FFCV's (sample_id, ptr, size)
    keys: np.ndarray  # UTF-8 bytes

    def save(self, path: Path) -> None:
        def write(partial: Path) -> None:
            with partial.open("wb") as file:
                np.savez(file, **self._asdict())

        replace_file(path, write)

    @classmethod
    def load(cls, path: Path) -> Part:
        with np.load(path, allow_pickle=False) as saved:
            return cls(*(saved[name] for name in cls._fields))


def page_size(max_side: int | None) -> int:
    """In bytes: small pages waste little at the end of each part, large ones take large images."""
    if max_side is None:
        return USUAL_PAGE
    return max(SMALLEST_PAGE, 1 << (2 * 3 * max_side**2 - 1).bit_length())


def write_part(pages: Path, samples: Iterable[StoredSample], *, max_side: int | None, quality: int) -> Part:
    """Write the images into pages, in order. max_side: longer images are reduced (FFCV's max_resolution). quality: of JPEG, in percent."""
    from ffcv.fields import RGBImageField
    from ffcv.memory_allocator import MemoryAllocator

    images = {jpeg: RGBImageField("jpg" if jpeg else "raw", jpeg_quality=quality) for jpeg in (True, False)}
    allocator = MemoryAllocator(str(pages), 0, page_size(max_side))
    pages.unlink(missing_ok=True)  # of an attempt that was cut off: FFCV would write behind it
    rows, keys = [], []
    allocator.__enter__()  # FFCV's own context manager, which returns nothing and is not to be used after an error
    for number, sample in enumerate(samples):
        row = np.zeros(1, ROW)
        allocator.set_current_sample(number)
        try:
            images[sample.as_jpeg].encode(row["image"], _reduced(sample.pixels, max_side), allocator.malloc)
        except ValueError as error:
            if "page size" not in str(error):
                raise
            raise DataError(
                f"sample {sample.key} is larger than FFCV's page of {allocator.page_size} bytes; store smaller images by --max-side."
            ) from None
        row["label"] = sample.label
        rows.append(row)
        keys.append(sample.key.encode())
    allocator.__exit__(None, None, None)
    if pages.stat().st_size != allocator.next_page_written.value * allocator.page_size:  # FFCV takes no notice of a write that was cut off
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return Part(_joined(rows), np.array(allocator.allocations, ALLOCATION), np.array(keys, "S"))


def _reduced(pixels: np.ndarray, max_side: int | None) -> np.ndarray:
    """FFCV's own would make a side of a very long image 0 pixels long, and fail."""
    import cv2

    longest = max(pixels.shape[:2])
    if max_side is None or longest <= max_side:
        return pixels
    height, width = (max(1, round(side * max_side / longest)) for side in pixels.shape[:2])
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)


def _joined(tables: list[np.ndarray]) -> np.ndarray:
    """One table after the other. NumPy's own concatenate drops the gaps that FFCV's rows have between their columns."""
    joined = np.zeros(sum(map(len, tables)), ROW)
    start = 0
    for table in tables:
        joined[start : start + len(table)] = table
        start += len(table)
    return joined
