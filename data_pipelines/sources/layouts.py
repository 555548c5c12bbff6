"""Lists all layouts of published data sets, recognises them, and opens them with `open_splits`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from data_pipelines.errors import DataError
from data_pipelines.sources.arrays import open_arrays
from data_pipelines.sources.base import Source
from data_pipelines.sources.cifar import open_cifar
from data_pipelines.sources.cifar10_c import open_cifar10_c
from data_pipelines.sources.cifar10_dvs import open_cifar10_dvs
from data_pipelines.sources.cifar_archive import CIFAR10, CIFAR100
from data_pipelines.sources.dvs128_gesture import open_dvs128_gesture
from data_pipelines.sources.folders import open_folders
from data_pipelines.sources.idx import is_idx, open_idx
from data_pipelines.sources.imagenet import ARCHIVES, open_imagenet
from data_pipelines.sources.imagenet_c import open_imagenet_c
from data_pipelines.sources.lists import open_lists
from data_pipelines.sources.mnist import open_mnist
from data_pipelines.sources.tars import open_tars
from data_pipelines.storage.passing_trouble import SEE_TO_IT, reading

Splits = dict[str, Source]
"""The sources of a data set by the name of the split: `train`, `val`, …"""
IMAGE_LAYOUTS: dict[str, Callable[[Path], Splits]] = {
    "folders": open_folders,
    "tars": open_tars,
    "lists": open_lists,
    "arrays": open_arrays,
    "imagenet": open_imagenet,
    "cifar10": partial(open_cifar, classes=10),
    "cifar100": partial(open_cifar, classes=100),
    "mnist": open_idx,
    "cifar10-c": open_cifar10_c,
    "imagenet-c": open_imagenet_c,
}
EVENT_LAYOUTS: dict[str, Callable[[Path, int], Splits]] = {
    "dvs128-gesture": open_dvs128_gesture,
    "cifar10-dvs": open_cifar10_dvs,
}
LAYOUTS = (*IMAGE_LAYOUTS, *EVENT_LAYOUTS)
"""All names that `--layout` takes."""
EXPECTED = (
    "train/<class>/<image>, train/<class>.tar, train.txt, train.npz, train/images.npy, each with the same for val, or the published "
    "archives of ImageNet, CIFAR or MNIST and its like"
)
DETECTORS: tuple[tuple[str, Callable[[Path], bool]], ...] = (
    ("imagenet", lambda root: _holds(root, *ARCHIVES)),
    ("cifar10", lambda root: root.name == CIFAR10.archive or _holds(root, CIFAR10.meta)),
    (
        "cifar100",
        lambda root: root.name in (CIFAR100.archive, CIFAR100.folder),
    ),  # its members `train` and `test` are too common to recognise it
    ("mnist", is_idx),
    ("cifar10-c", lambda root: root.name == "CIFAR-10-C"),
    ("imagenet-c", lambda root: root.name == "ImageNet-C"),
    ("lists", lambda root: root.suffix == ".txt" or _holds(root, "train.txt", "val.txt")),
    ("arrays", lambda root: _holds(root, "train.npz", "val.npz", "train/images.npy", "val/images.npy")),
    ("tars", lambda root: any(root.glob("train/*.tar*")) and not any(entry.is_dir() for entry in root.glob("train/*"))),
    ("folders", lambda root: _holds(root, "train", "val")),
)
"""A quick test for each layout. The first layout that passes is taken. Opening it then reports what is missing."""


def _holds(root: Path, *names: str) -> bool:
    return any((root / name).exists() for name in names)


def open_splits(source: str, layout: str = "auto", time_steps: int = 16) -> Splits:
    """Open what a user names: the word `mnist`, or a folder or file in one of the layouts.

    layout: one of LAYOUTS, or "auto", which recognises the layouts of images. time_steps: frames per sample of an event data set.
    Raises DataError if no layout fits, and for files that do not follow the layout. Raises UnavailableError if something of the source
    cannot be looked at now.
    """
    if layout not in ("auto", *LAYOUTS):
        raise DataError(f"{layout} is no layout; choose one of auto, {', '.join(LAYOUTS)}.")
    if source == "mnist" and layout in ("auto", "mnist"):
        return open_mnist()
    path = Path(source)
    with reading(source):
        if not path.exists():
            raise DataError(f"{path} is not a folder; give a folder that holds train/ and val/, or the word mnist.")
    try:
        with reading(source, was_there=True):
            return _open(path, layout, time_steps)
    except OSError as error:
        raise DataError(f"{error.filename or path} cannot be read ({error.strerror}); {SEE_TO_IT}.") from None


def _open(path: Path, layout: str, time_steps: int) -> Splits:
    if layout in EVENT_LAYOUTS:
        return EVENT_LAYOUTS[layout](path, time_steps)
    return IMAGE_LAYOUTS[_recognise(path) if layout == "auto" else layout](path)


def _recognise(root: Path) -> str:
    for layout, fits in DETECTORS:
        if fits(root):
            return layout
    raise DataError(f"{root} is in no layout that is recognised; expected {EXPECTED}; or name the layout, one of {', '.join(LAYOUTS)}.")
