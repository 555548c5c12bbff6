"""Reads images from tar files without unpacking them. The headers are scanned once; then each image takes one seek."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from data_pipelines.errors import DataError
from data_pipelines.formats.keys import is_utf8
from data_pipelines.sources.base import Source
from data_pipelines.sources.tar_scan import IS_COMPRESSED, TarImages, members, open_tar, scan_images
from data_pipelines.sources.tar_source import TarSource

COMPRESSED_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


class TarPerClassSource(TarSource):
    """The samples of a folder with one `<class>.tar` of JPEG or PNG files per class. Classes are sorted by name.

    classes: for a validation set, the class names of the training set. A tar of another name is an error.
    Raises DataError for a folder without tars, a compressed or damaged tar, and a class tar without images.
    """

    def __init__(self, folder: Path, classes: Sequence[str] | None = None) -> None:
        tars: dict[str, Path] = {}
        entries = sorted(folder.iterdir())
        for path in entries:
            if path.is_file() and (name := _class_of(path.name, str(path))):
                tars[name] = path
        if not tars:
            raise DataError(f"{folder} holds no .tar file; expected {folder}/<class>.tar with the images of a class.")
        names = _known_classes(tars, classes, str(folder))
        parts = [_scan_class(path) for path in tars.values()]
        super().__init__(names, parts, [names.index(name) for name in tars], len(entries) - len(tars))


class NestedTarSource(TarSource):
    """The samples of a tar of class tars, as ImageNet's training set is published. Nothing is unpacked.

    classes: as for TarPerClassSource. Raises DataError as TarPerClassSource does, and for two class tars of the same name.
    """

    def __init__(self, tar: Path, classes: Sequence[str] | None = None) -> None:
        ignored_files = 0
        parts: dict[str, TarImages] = {}
        with open_tar(tar) as file:
            for archive, member in members(file, str(tar)):
                origin = f"{tar}, member {member.name}"
                name = _class_of(member.name, origin) if member.isreg() else None
                if name is None:
                    ignored_files += not member.isdir()
                    continue
                if name in parts:
                    raise DataError(f"{parts[name].origin} and {origin} are both class {name}; rename or remove one of them.")
                parts[name] = _scan_inner(archive, member, tar, origin)
        if not parts:
            raise DataError(f"{tar} holds no class tar; expected members <class>.tar with the images of a class.")
        names = _known_classes(parts, classes, str(tar))
        ordered = sorted(parts)
        super().__init__(names, [parts[name] for name in ordered], [names.index(name) for name in ordered], ignored_files)


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
        raise DataError(f"{images.origin} holds no .jpg, .jpeg or .png file; fill or remove it.")
    return images


def _class_of(name: str, origin: str) -> str | None:
    """Read the class from the name of a tar. Returns None if the name is not that of a tar."""
    if name.endswith(COMPRESSED_SUFFIXES):
        raise DataError(f"{origin} {IS_COMPRESSED}")
    path = PurePosixPath(name)
    if path.suffix != ".tar":
        return None
    if not is_utf8(name):
        raise DataError(f"{name!r}, a class tar, has a name that is not UTF-8; rename it.")
    return path.stem


def _known_classes(found: Iterable[str], classes: Sequence[str] | None, origin: str) -> list[str]:
    names = list(classes or sorted(found))
    if unknown := sorted(set(found) - set(names)):
        raise DataError(f"{origin}: class tars {unknown[:5]} do not occur in the training set; remove or rename them.")
    return names


def open_tars(root: Path) -> dict[str, Source]:
    """Open `train` and `val` in a folder with train/<class>.tar and val/<class>.tar. Raises DataError."""
    if missing := [split for split in ("train", "val") if not (root / split).is_dir()]:
        raise DataError(f"{root} has no folder {missing[0]}/; expected {root}/train/<class>.tar and {root}/val/<class>.tar.")
    train = TarPerClassSource(root / "train")
    return {"train": train, "val": TarPerClassSource(root / "val", train.classes)}
