"""Reads ImageNet-1k from its three published archives, without unpacking them."""

from __future__ import annotations

import io
import re
import tarfile
from pathlib import Path, PurePosixPath

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.sources.base import Source
from data_pipelines.sources.tar_scan import TarImages, open_tar, scan_images
from data_pipelines.sources.tar_source import TarSource
from data_pipelines.sources.tars import NestedTarSource
from data_pipelines.storage.passing_trouble import read_error

TRAIN, VAL, DEVKIT = ARCHIVES = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz")
META = "ILSVRC2012_devkit_t12/data/meta.mat"
TRUTH = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"


def open_imagenet(folder: Path) -> dict[str, Source]:
    """Open `train` and `val` in a folder with the three archives. Class names are the WordNet ids, sorted, as in a folder tree.

    Raises DataError for a missing or damaged archive, and for archives that contradict each other.
    """
    if missing := [name for name in ARCHIVES if not (folder / name).is_file()]:
        raise DataError(f"{folder} lacks {', '.join(missing)}; copy ImageNet's archives there as they were downloaded.")
    class_of, truth = read_devkit(folder / DEVKIT)
    classes = sorted(class_of.values())
    val = _validation(folder / VAL, classes, [classes.index(class_of[number]) for number in truth])
    train = NestedTarSource(folder / TRAIN, classes)  # opened last, since it takes the longest
    if absent := sorted(set(classes) - train.with_images):
        raise DataError(f"{folder / TRAIN} lacks the class tars {absent[:5]} that {DEVKIT} names; copy it again.")
    return {"train": train, "val": val}


def read_devkit(path: Path) -> tuple[dict[int, str], list[int]]:
    """Read the development kit.

    Returns the WordNet id of each ILSVRC2012_ID, and the ILSVRC2012_ID of each validation image in the order of the image numbers.
    """
    try:
        with tarfile.open(path, "r:gz") as tar:
            meta, truth = (_read(tar, name) for name in (META, TRUTH))
    except KeyError as error:
        raise DataError(f"{path}: {error.args[0]}; copy the archive again.") from None
    except Exception as error:  # a damaged archive raises errors of gzip, zlib or tarfile
        raise read_error(path, error, f"{path} is no readable .tar.gz file ({error}); copy it again.", was_there=True) from None
    class_of = _parse_meta(meta, f"{path}, member {META}")
    return class_of, _parse_truth(truth, class_of, f"{path}, member {TRUTH}")


def _read(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    if file is None:
        raise KeyError(f"member {name} is no file")
    return file.read()


def _parse_meta(data: bytes, origin: str) -> dict[int, str]:
    """Read the classes, which are the leaves of the hierarchy. The other rows are their hypernyms."""
    from scipy.io import loadmat  # slow to import, and used only here

    try:
        rows = np.atleast_1d(loadmat(io.BytesIO(data), squeeze_me=True)["synsets"])
        return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows if int(row["num_children"]) == 0}
    except Exception as error:  # SciPy raises many kinds of errors for a damaged file
        raise DataError(f"{origin} cannot be read as ImageNet's table of classes ({error}); copy the archive again.") from None


def _parse_truth(data: bytes, class_of: dict[int, str], origin: str) -> list[int]:
    numbers = []
    for line, text in enumerate(data.splitlines(), 1):
        try:
            number = int(text)
        except ValueError:
            raise DataError(f"{origin}, line {line}, is {text[:40]!r} and not a class number; copy the archive again.") from None
        if number not in class_of:
            raise DataError(f"{origin}, line {line}: {number} is no class in meta.mat; copy the archive again.")
        numbers.append(number)
    return numbers


def _validation(tar: Path, classes: list[str], truth: list[int]) -> TarSource:
    """Open the validation images. truth: the class indices of the images with the numbers 1, 2, …"""
    with open_tar(tar) as file:
        images = scan_images(file, tar, str(tar))
    numbers = _image_numbers(images)
    if len(numbers) != len(truth):
        raise DataError(f"{tar} holds {len(numbers)} images, but the ground truth in {DEVKIT} has {len(truth)} lines; copy both again.")
    if outside := [int(number) for number in numbers if not 1 <= number <= len(truth)]:
        raise DataError(f"{tar}: image number {outside[0]} has no line in the ground truth of {len(truth)} lines; copy it again.")
    return TarSource(classes, [images], [np.array(truth)[numbers - 1]])


def _image_numbers(images: TarImages) -> np.ndarray:
    """Read the number of each image from its name, for example 7 from ILSVRC2012_val_00000007.JPEG. Returns int64 [N]."""
    found = []
    for name in (member.decode() for member in images.member):
        if not (match := re.fullmatch(r"ILSVRC2012_val_([0-9]{8})", PurePosixPath(name).stem)):
            raise DataError(
                f"{images.origin}: member {name!r} has another name than expected, ILSVRC2012_val_<8 digits>.JPEG; copy it again."
            )
        found.append(int(match[1]))
    return np.array(found, np.int64)
