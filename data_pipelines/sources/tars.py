"""Reads images from tar files without unpacking them. The headers are scanned once; then each image takes one seek."""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from data_pipelines.errors import DataError
from data_pipelines.formats.images import is_of_macos, looks_like_image
from data_pipelines.formats.keys import is_utf8
from data_pipelines.sources.base import LeftOut, Source
from data_pipelines.sources.entries import LINK_TO_NOTHING, files_below, why_no_file
from data_pipelines.sources.known_classes import known_classes
from data_pipelines.sources.tar_scan import IS_COMPRESSED, TarImages, members, open_tar, scan_images, why_no_image_member
from data_pipelines.sources.tar_source import TarSource
from data_pipelines.storage.passing_trouble import reading

IN_NO_TAR = "it lies in no class tar; move it into one"
TOO_DEEP_FOR_A_TAR = "it lies deeper than <class>.tar; move it up, or pack the images of each class into one tar"
COMPRESSED_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


class TarPerClassSource(TarSource):
    """The samples of a folder with one `<class>.tar` of JPEG or PNG files per class. Classes are sorted by name.

    classes: for a validation set, the class names of the training set. A tar of another name is an error.
    Raises DataError for a folder without tars, a compressed or damaged tar, and a class tar without images.
    """

    def __init__(self, folder: Path, classes: Sequence[str] | None = None) -> None:
        with reading(folder, was_there=True):
            tars, left_out, others = _list_tars(folder)
        if not tars:
            raise DataError(f"{folder} holds no .tar file; expected {folder}/<class>.tar with the images of a class.")
        names = known_classes(tars, classes, folder, "class tars")
        parts = [_scan_class(path) for path in tars.values()]
        super().__init__(names, parts, [names.index(name) for name in tars], others, left_out)


class NestedTarSource(TarSource):
    """The samples of a tar of class tars, as ImageNet's training set is published. Nothing is unpacked.

    classes: as for TarPerClassSource. Raises DataError as TarPerClassSource does, and for two class tars of the same name.
    """

    def __init__(self, tar: Path, classes: Sequence[str] | None = None) -> None:
        ignored_files, left_out = 0, list[LeftOut]()
        parts: dict[str, TarImages] = {}
        with open_tar(tar) as file:
            for archive, member in members(file, str(tar)):
                origin = f"{tar}, member {member.name}"
                name = _class_of(member.name, origin)
                if name is None or not member.isreg():
                    reason = None if member.isdir() else _why_no_class_tar(member)
                    left_out += [LeftOut(origin, reason)] if reason else []
                    ignored_files += not (reason or member.isdir())
                    continue
                if name in parts:
                    raise DataError(f"{parts[name].origin} and {origin} are both class {name}; rename or remove one of them.")
                parts[name] = _scan_inner(archive, member, tar, origin)
        if not parts:
            raise DataError(f"{tar} holds no class tar; expected members <class>.tar with the images of a class.")
        names = known_classes(parts, classes, tar, "class tars")
        ordered = sorted(parts)
        super().__init__(names, [parts[name] for name in ordered], [names.index(name) for name in ordered], ignored_files, left_out)


def _list_tars(folder: Path) -> tuple[dict[str, Path], list[LeftOut], int]:
    """List the class tars of a folder by class, what looks like tars or images and is none, and the number of other files."""
    tars: dict[str, Path] = {}
    left_out, others = list[LeftOut](), 0
    for path in sorted(folder.iterdir()):
        name, fault = _class_of(path.name, str(path)), why_no_file(path)
        if name and not fault:
            tars[name] = path
        elif reason := fault if name or fault == LINK_TO_NOTHING else IN_NO_TAR if looks_like_image(path.name) else None:
            left_out.append(LeftOut(str(path), reason))
        elif path.is_dir() and not path.name.startswith("."):
            left_out += files_below(path, TOO_DEEP_FOR_A_TAR, lambda name: looks_like_image(name) or name.endswith(".tar"))
        else:
            others += 1
    return tars, left_out, others


def _why_no_class_tar(member: tarfile.TarInfo) -> str | None:
    """Say why a member of the outer tar looks like a class or an image and is none, or return None if it does not."""
    if looks_like_image(member.name):
        return why_no_image_member(member) or IN_NO_TAR
    return why_no_image_member(member) if member.name.endswith(".tar") and not is_of_macos(member.name) else None


def _scan_class(tar: Path) -> TarImages:
    with open_tar(tar) as file:
        return _require_images(scan_images(file, tar, str(tar)))


def _scan_inner(outer: tarfile.TarFile, member: tarfile.TarInfo, tar: Path, origin: str) -> TarImages:
    """Scan a tar inside a tar. The offsets count from the start of the outer file."""
    inner = outer.extractfile(member)
    assert inner is not None  # extractfile returns None only for members that are no regular files
    images = scan_images(inner, tar, origin)
    return _require_images(replace(images, offset=images.offset + member.offset_data))


def _require_images(images: TarImages) -> TarImages:
    if not len(images):
        there = f" ({images.left_out[0].origin}: {images.left_out[0].reason})" if images.left_out else ""
        raise DataError(f"{images.origin} holds no .jpg, .jpeg or .png file; fill or remove it{there}.")
    return images


def _class_of(name: str, origin: str) -> str | None:
    """Read the class from the name of a tar. Returns None if the name is not that of a tar, or if it is hidden."""
    path = PurePosixPath(name)
    if path.name.startswith("."):
        return None
    if name.endswith(COMPRESSED_SUFFIXES):
        raise DataError(f"{origin} {IS_COMPRESSED}")
    if path.suffix != ".tar":
        return None
    if not is_utf8(name):
        raise DataError(f"{name!r}, a class tar, has a name that is not UTF-8; rename it.")
    return path.stem


def open_tars(root: Path) -> dict[str, Source]:
    """Open `train` and `val` in a folder with train/<class>.tar and val/<class>.tar. Raises DataError."""
    if missing := [split for split in ("train", "val") if not (root / split).is_dir()]:
        raise DataError(f"{root} has no folder {missing[0]}/; expected {root}/train/<class>.tar and {root}/val/<class>.tar.")
    train = TarPerClassSource(root / "train")
    return {"train": train, "val": TarPerClassSource(root / "val", train.classes)}
