"""Event-camera sets, integrated into frames by spikingjelly's own readers: DVS128 Gesture and CIFAR10-DVS.

spikingjelly expects the published files in `download/` below the root, and writes beside it: `extract/` (the unpacked
recordings), `events_np/` (events) and `frames_number_<T>_split_by_number/` (frames: each holds an equal number of a
sample's events, the last one also the remainder). Its readers unpickle nothing: numpy's default refuses objects.
"""

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

HEIGHT = WIDTH = 128
REMEDY = "remove the folder frames_number_…_split_by_number that it lies in and prepare again"
"""The whole folder: if it exists, spikingjelly takes it for complete."""


class EventSource:
    """Frames [T, 2, H, W] that spikingjelly made, as .npy files of the numbers of events: uint8, or uint16 where 255 is too few.

    files: each file of frames with its class index, such as a spikingjelly data set's `samples`.
    """

    def __init__(self, files: Sequence[tuple[str, int]], classes: Sequence[str], time_steps: int) -> None:
        self.classes = list(classes)
        self.left_out = 0
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
        """[T, 2, H, W], float64 from spikingjelly. Read here and not by spikingjelly, whose import takes each writing process seconds."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                frames: np.ndarray = arrays["frames"]
        except (OSError, KeyError, TypeError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"{path} cannot be read ({error}); {REMEDY}.") from None
        if frames.shape != self._shape or frames.dtype.kind not in "fiu":
            found, expected = f"{frames.dtype} {list(frames.shape)}", list(self._shape)
            raise DataError(f"{path} is {found}; expected numbers {expected}: {REMEDY}.")
        return frames

    def place(self, index: int) -> str:
        return str(self._files[index][0])

    def fingerprint(self) -> str:
        """Of classes, names and the checksums of the frames, which stand in the directories of the .npz files."""
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
        raise DataError(f"{path} cannot be read ({error}); {REMEDY}.") from None
