"""Reads single samples from an FFCV file: raw pixels as they are stored, JPEGs with libjpeg-turbo.

We use FFCV's file format and its decoder, but not its Loader, for three reasons. Its random crops and flips cannot be tied to
(seed, epoch, sample). For a damaged JPEG it returns the pixels of another image. It compiles for seconds at every start.
"""

from __future__ import annotations

import os
from io import FileIO
from pathlib import Path

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.formats.ffcv_format import RAW, read_rows
from data_pipelines.formats.images import MAX_PIXELS
from data_pipelines.formats.index import Index, check_index, find_index
from data_pipelines.formats.remedies import prepare_again
from data_pipelines.formats.turbojpeg import decode_jpeg, require_ffcv
from data_pipelines.storage.passing_trouble import read_error
from data_pipelines.storage.shard_info import ShardInfo


class FfcvReader:
    """Reads images of one FFCV file. Each process that unpickles the reader opens the file again.

    Raises UserError if FFCV is not installed, DataError if the file does not agree with the index, and UnavailableError if it cannot
    be read now.
    """

    def __init__(self, path: Path, index: Index) -> None:
        require_ffcv()
        self.path, self.index = path, index
        rows = read_rows(path)
        self._check(rows)
        self._mode, self._height, self._width = (np.ascontiguousarray(rows["image"][name]) for name in ("mode", "height", "width"))
        self._opened: FileIO | None = None

    def __reduce__(self) -> tuple:
        return FfcvReader, (self.path, self.index)

    def _check(self, rows: np.ndarray) -> None:
        """Compare the rows of the file with the index, and check their sizes."""
        if len(rows) != len(self.index):
            raise DataError(f"{self.path} holds {len(rows)} samples, its index {len(self.index)}; {prepare_again(self.path.parent)}.")
        image = rows["image"]
        pixels = image["height"].astype(np.int64) * image["width"]
        wrong = (image["data_ptr"] != self.index["offset"]) | (rows["label"] != self.index["label"]) | (image["mode"] > RAW) | (pixels == 0)
        wrong |= (image["mode"] == RAW) & (self.index["size"] != 3 * pixels)
        wrong |= pixels > MAX_PIXELS
        if wrong.any():
            sample = int(np.flatnonzero(wrong)[0])
            raise DataError(
                f"sample {self.index.key_of(sample)} in {self.path} does not agree with the index; {prepare_again(self.path.parent)}."
            )

    def read(self, sample: int) -> np.ndarray:
        """Read an image as uint8 [H, W, 3]. Raises DataError or UnavailableError, without the file and the key."""
        height, width = int(self._height[sample]), int(self._width[sample])
        data = self._bytes(sample)
        return data.reshape(height, width, 3) if self._mode[sample] == RAW else decode_jpeg(data, height, width)

    @property
    def _file(self) -> FileIO:
        if self._opened is None:
            self._opened = self.path.open("rb", buffering=0)
        return self._opened

    def _bytes(self, sample: int) -> np.ndarray:
        """Read from the file, which is not mapped into memory: a truncated map or a failing disk would kill the process."""
        data = np.empty(self.index["size"][sample], np.uint8)
        try:
            read = os.preadv(self._file.fileno(), [data.data], int(self.index["offset"][sample]))
        except OSError as error:
            self._opened = None  # after a lost mount, only a file that is opened again can be read
            raise read_error("the file", error, f"the file cannot be read ({error.strerror})", was_there=True) from None
        if read != len(data):
            raise DataError(f"the file ends after {read} of the image's {len(data)} bytes")
        return data


def load_ffcv_index(folder: Path, shards: list[ShardInfo]) -> Index:
    """Load the saved index. An FFCV file holds no keys, so a lost index cannot be made again.

    Raises DataError if there is no index that fits the file.
    """
    if len(shards) != 1:
        raise DataError(f"{folder} names {len(shards)} FFCV files, and a set is one; {prepare_again(folder)}.")
    index = find_index(folder, shards)
    if index is None:
        raise DataError(f"{folder} lacks the index file of its {shards[0].name}, or it is damaged; {prepare_again(folder)}.")
    check_index(folder, index, shards, prepare_again(folder))
    return index
