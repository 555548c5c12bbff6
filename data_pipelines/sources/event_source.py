"""Reads event-camera samples that spikingjelly has integrated into frames."""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.formats.keys import key_of
from data_pipelines.formats.sample import RawSample
from data_pipelines.sources.base import LeftOut
from data_pipelines.storage.passing_trouble import read_error

HEIGHT = WIDTH = 128
REMEDY = "remove the folder frames_number_…_split_by_number that it lies in and prepare again"
"""The advice is to remove the whole folder, since spikingjelly takes an existing folder for complete."""


class EventSource:
    """The samples of one event data set: frames [T, 2, H, W] of event counts. Each sample becomes an .npy file.

    The counts are uint8, or uint16 if one of them is larger than 255.
    files: pairs of a file of frames and its class index, as in the `samples` of a spikingjelly data set.
    """

    def __init__(self, files: Sequence[tuple[str, int]], classes: Sequence[str], time_steps: int) -> None:
        self.classes = list(classes)
        self.ignored_files = 0
        self.left_out: list[LeftOut] = []
        self._files = [(Path(path), label) for path, label in files]
        self._shape = (time_steps, 2, HEIGHT, WIDTH)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> RawSample:
        path, label = self._files[index]
        npy = io.BytesIO()
        np.save(npy, _as_counts(path, self._frames(path)), allow_pickle=False)
        return RawSample(key_of(f"{path.parent.name}/{path.name}"), "npy", npy.getvalue(), label)

    def _frames(self, path: Path) -> np.ndarray:
        """Read the frames [T, 2, H, W] of one file, usually float64. spikingjelly's reader is not used, since its import takes seconds."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                frames: np.ndarray = arrays["frames"]
        except (OSError, KeyError, TypeError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise read_error(path, error, f"{path} cannot be read ({error}); {REMEDY}.", was_there=True) from None
        if frames.shape != self._shape or frames.dtype.kind not in "fiu":
            found, expected = f"{frames.dtype} {list(frames.shape)}", list(self._shape)
            raise DataError(f"{path} is {found}; expected numbers {expected}: {REMEDY}.")
        return frames

    def origin(self, index: int) -> str:
        return str(self._files[index][0])

    def fingerprint(self) -> str:
        """Hash class folders, file names and the checksums of the frames. The directory of each .npz file holds the checksum."""
        listing = "".join(f"{path.parent.name}/{path.name} {_checksum(path)}\n" for path, _ in self._files)
        return hashlib.sha256(listing.encode("utf-8", "surrogateescape")).hexdigest()


def _as_counts(path: Path, frames: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        counts = frames.astype(np.uint16)
    if not np.array_equal(counts, frames):
        raise DataError(f"{path} holds numbers of events other than 0 … 65535; give more time steps, or {REMEDY}.")
    return counts.astype(np.uint8) if counts.max(initial=0) <= 255 else counts


def _checksum(path: Path) -> int:
    try:
        with zipfile.ZipFile(path) as members:
            return members.getinfo("frames.npy").CRC
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise read_error(path, error, f"{path} cannot be read ({error}); {REMEDY}.", was_there=True) from None
