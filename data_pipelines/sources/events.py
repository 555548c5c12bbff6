"""Event-camera sets, integrated into frames by spikingjelly's own readers: DVS128 Gesture and CIFAR10-DVS.

spikingjelly expects the published files in `download/` below the root, and writes beside it: `extract/` (the unpacked
recordings), `events_np/` (events) and `frames_number_<T>_split_by_number/` (frames: each holds an equal number of a
sample's events, the last one also the remainder). Its readers unpickle nothing: numpy's default refuses objects.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import math
import sys
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.formats.keys import key_of
from data_pipelines.sources.base import RawSample, Source

GESTURES = (
    "hand_clapping",
    "right_hand_wave",
    "left_hand_wave",
    "right_arm_clockwise",
    "right_arm_counter_clockwise",
    "left_arm_clockwise",
    "left_arm_counter_clockwise",
    "arm_roll",
    "air_drums",
    "air_guitar",
    "other_gestures",
)
"""As the set's gesture_mapping.csv numbers them from 1, and spikingjelly's class folders from 0."""

TRAIN_RATIO = 0.9

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


def spikingjelly_datasets(name: str) -> Any:
    """A module of spikingjelly.datasets, imported only now (it takes seconds) and without the package's own __init__.

    That one imports all its data sets, so torchaudio too, which refuses to run beside a torch for another minor version of
    CUDA (https://github.com/pytorch/audio/pull/4226). An empty package takes its place for as long as the import lasts.
    """
    import spikingjelly

    package = "spikingjelly.datasets"
    empty = ModuleType(package)
    empty.__path__ = [str(Path(spikingjelly.__path__[0]) / "datasets")]
    sys.modules.setdefault(package, empty)
    try:
        return importlib.import_module(f"{package}.{name}")
    finally:
        if sys.modules[package] is empty:
            del sys.modules[package]


def open_dvs128_gesture(root: Path, time_steps: int) -> dict[str, Source]:
    """`train` and `val` (the published test trials) of DVS128 Gesture.

    Class indices are spikingjelly's, which sorts the folders 0 … 10 as words: 0, 1, 10, 2, …
    Raises DataError if downloads are missing or damaged.
    """
    gesture = spikingjelly_datasets("dvs128_gesture").DVS128Gesture

    def split(train: bool) -> EventSource:
        dataset = _integrated(gesture, root, time_steps, sorted(map(str, range(len(GESTURES)))), train=train)
        return EventSource(dataset.samples, [GESTURES[int(folder)] for folder in dataset.classes], time_steps)

    return {"train": split(True), "val": split(False)}


def open_cifar10_dvs(root: Path, time_steps: int) -> dict[str, Source]:
    """`train` and `val` of CIFAR10-DVS, which was published without a split: the first 90 % of each class, and the rest.

    "First" is by file name, as words: …_0, …_1, …_10, …_100. This is the split of spikingjelly's
    split_to_train_test_set(0.9, dataset, 10, random_split=False), which rounds the training part up.
    Raises DataError if downloads are missing or damaged.
    """
    module = spikingjelly_datasets("cifar10_dvs")
    dataset = _integrated(module.CIFAR10DVS, root, time_steps, sorted(module.CIFAR10DVS_CLASS_NAMES))
    train, val = _split(dataset.samples, len(dataset.classes))
    return {"train": EventSource(train, dataset.classes, time_steps), "val": EventSource(val, dataset.classes, time_steps)}


Files = list[tuple[str, int]]


def _split(files: Files, classes: int) -> tuple[Files, Files]:
    train: Files = []
    val: Files = []
    for label in range(classes):
        of_class = [file for file in files if file[1] == label]
        border = math.ceil(len(of_class) * TRAIN_RATIO)
        train += of_class[:border]
        val += of_class[border:]
    return train, val


def _integrated(dataset_class: Any, root: Path, time_steps: int, folders: Sequence[str], **arguments: bool) -> Any:
    """spikingjelly's data set of frames, made if it is not there yet. Its class folders must be those expected."""
    if time_steps < 1:
        raise DataError(f"{time_steps} time steps cannot hold the events of {root}; give 1 or more.")
    if unfinished := sorted(root.glob("*.building")):
        raise DataError(f"{unfinished[0]}: the preparation was interrupted, or still runs; remove everything in {root} but download/.")
    if not (root / "events_np").exists():
        _check_downloads(root / "download", dataset_class.resource_url_md5())
    try:
        dataset = dataset_class(str(root), data_type="frame", frames_number=time_steps, split_by="number", **arguments)
    except Exception as error:  # its readers check little, and a damaged recording may fail anywhere in them
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"{root} cannot be prepared ({reason}); remove everything in it but download/ and prepare again.") from None
    if list(dataset.classes) != list(folders):
        raise DataError(f"{dataset.root} holds the classes {dataset.classes}; expected {folders}: remove all in {root} but download/.")
    return dataset


def _check_downloads(folder: Path, published: Sequence[tuple[str, str, str]]) -> None:
    """published: name, address and MD5 of each file.

    spikingjelly would delete a file with another MD5, try to download what is missing, and unpack whatever else lies there.
    """
    if missing := [f"{name} from {address}" for name, address, _ in published if not (folder / name).is_file()]:
        raise DataError(f"{folder} lacks {len(missing)} of the published files; download {', '.join(missing)}.")
    if strange := sorted({path.name for path in folder.iterdir()} - {name for name, _, _ in published}):
        raise DataError(f"{folder / strange[0]} is none of the published files; remove it.")
    if damaged := [name for name, _, md5 in published if _md5(folder / name) != md5]:
        raise DataError(f"{folder / damaged[0]} is not as published (its MD5 differs); remove it and download it again.")


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
