"""A sample from its FFCV file: raw pixels as they lie there, JPEGs by FFCV's libjpeg-turbo decoder.

FFCV's own Loader is not used: its random crops and flips draw from generators that cannot be tied to (seed, epoch, sample),
it shows the pixels of another image where a JPEG is damaged, and compiles for seconds at every start. Its file format and its
decoder are; order, resume, workers and transforms are those of every other data set.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.formats.ffcv_format import RAW, read_rows
from data_pipelines.formats.images import MAX_PIXELS
from data_pipelines.formats.index import Index
from data_pipelines.formats.remedies import prepare_again
from data_pipelines.formats.turbojpeg import decode_jpeg, need_ffcv


class FfcvReader:
    """Reads images out of one FFCV file, which is opened anew in every process."""

    def __init__(self, path: Path, index: Index) -> None:
        need_ffcv()
        self.path, self.index = path, index
        rows = read_rows(path)
        self._check(rows)
        self._mode, self._height, self._width = (np.ascontiguousarray(rows["image"][name]) for name in ("mode", "height", "width"))
        self._file = path.open("rb", buffering=0)

    def __reduce__(self) -> tuple:
        return FfcvReader, (self.path, self.index)

    def _check(self, rows: np.ndarray) -> None:
        """What the file says of each image must agree with the index and with itself."""
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
        """uint8 [H, W, 3]."""
        height, width = int(self._height[sample]), int(self._width[sample])
        data = self._bytes(sample)
        return data.reshape(height, width, 3) if self._mode[sample] == RAW else decode_jpeg(data, height, width)

    def _bytes(self, sample: int) -> np.ndarray:
        """Read, not mapped into memory: a file that is cut off or a disk that fails is an error here, not the end of the process."""
        data = np.empty(self.index["size"][sample], np.uint8)
        try:
            read = os.preadv(self._file.fileno(), [data.data], int(self.index["offset"][sample]))
        except OSError as error:
            raise DataError(f"the file cannot be read ({error.strerror})") from None
        if read != len(data):
            raise DataError(f"the file ends after {read} of the image's {len(data)} bytes")
        return data
