"""Describes the byte layout of an FFCV file with the fields `image` and `label`, as FFCV 1.0 writes it (format version 2).

    header | field descriptions | one row per sample | pages of images | allocation table

The package ffcv has the same types, but its import takes 3 s in every loader process, and sets torch's number of threads.
A test compares the two.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.formats.remedies import prepare_again
from data_pipelines.storage.passing_trouble import SEE_TO_IT, read_error

VERSION = 2
FIELDS = {b"image": 2, b"label": 1}
"""The names of the fields, and FFCV's type number of each: RGBImageField and IntField."""

HEADER = np.dtype(
    [("version", "<u2"), ("num_fields", "<u2"), ("page_size", "<u4"), ("num_samples", "<u8"), ("alloc_table_ptr", "<u8")], align=True
)
FIELD = np.dtype([("type_id", "<u1"), ("name", "S16"), ("arguments", ("<u1", (1024,)))], align=True)
HEAD = np.dtype([("header", HEADER), ("fields", FIELD, 2)])

IMAGE = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
ROW = np.dtype([("image", IMAGE), ("label", "<i8")], align=True)
JPEG, RAW = 0, 1
"""The values of `mode`: how the image is stored."""

ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])


def new_head(samples: int, page_size: int, alloc_table_ptr: int) -> np.ndarray:
    """Make the header and the field descriptions of a new file."""
    head = np.zeros((), HEAD)
    head["header"] = (VERSION, len(FIELDS), page_size, samples, alloc_table_ptr)
    for number, (name, type_id) in enumerate(FIELDS.items()):
        head["fields"]["name"][number], head["fields"]["type_id"][number] = name, type_id
    return head


def read_rows(path: Path) -> np.ndarray:
    """Read the row of each sample.

    Raises DataError if the file is no FFCV file with exactly these two fields, and UnavailableError if it cannot be read now.
    """
    try:
        with path.open("rb") as file:
            start = file.read(HEAD.itemsize)
            head = np.frombuffer(start.ljust(HEAD.itemsize, b"\0"), HEAD)[0]
            samples = int(head["header"]["num_samples"])
            fits = len(start) == HEAD.itemsize and HEAD.itemsize + samples * ROW.itemsize <= path.stat().st_size
            rows = np.fromfile(file, ROW, samples) if fits else np.zeros(0, ROW)
    except OSError as error:
        raise read_error(path, error, f"{path} cannot be read ({error.strerror}); {SEE_TO_IT}.", was_there=True) from None
    found = dict(zip(head["fields"]["name"].tolist(), head["fields"]["type_id"].tolist(), strict=True))
    if not fits or (head["header"]["version"], head["header"]["num_fields"], found) != (VERSION, len(FIELDS), FIELDS):
        raise DataError(f"{path} is no FFCV file with the fields image and label; {prepare_again(path.parent)}.")
    return rows
