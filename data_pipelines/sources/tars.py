"""Images inside tar files, read where they lie: the headers are scanned once, after that one image is one seek."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from posixpath import normpath

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.formats.images import EXTENSION_OF
from data_pipelines.formats.keys import is_utf8, key_of, refuse_same_keys
from data_pipelines.formats.sample import RawSample
from data_pipelines.sources.base import Source
from data_pipelines.sources.tar_scan import IS_COMPRESSED, TarImages, members, opened, scan_images

COMPRESSED_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


class TarSource:
    """Images at known places of tar files: what all layouts with tars have in common.

    labels: for each part the class index of all its images, or an array with one index per image.
    Raises DataError for two images with the same key.
    """

    def __init__(self, classes: Sequence[str], parts: Sequence[TarImages], labels: Sequence[int | np.ndarray], left_out: int = 0) -> None:
        self.classes = list(classes)
        self.left_out = left_out + sum(part.left_out for part in parts)
        self._places = [(part.tar, part.place) for part in parts]
        self._part = np.repeat(np.arange(len(parts), dtype=np.int32), [len(part) for part in parts])
        self._member = np.concatenate([part.member for part in parts])
        self._offset = np.concatenate([part.offset for part in parts])
        self._size = np.concatenate([part.size for part in parts])
        self._label = np.concatenate([np.full(len(part), label, np.int32) for part, label in zip(parts, labels, strict=True)])
        refuse_same_keys((self._key(index) for index in range(len(self))), self.place)

    @property
    def with_images(self) -> set[str]:
        """The classes that have any."""
        return {self.classes[label] for label in np.unique(self._label)}

    def _key(self, index: int) -> str:
        """The key that the image would have in a folder of its class. A tar may have been packed with or without that folder."""
        name = self.classes[self._label[index]]
        member = normpath(self._member[index].decode()).removeprefix(f"{name}/")
        return f"{name.replace('.', '_')}/{key_of(member)}"

    def __len__(self) -> int:
        return len(self._member)

    def __getitem__(self, index: int) -> RawSample:
        tar, size = self._places[self._part[index]][0], int(self._size[index])
        try:
            with tar.open("rb") as file:
                file.seek(int(self._offset[index]))
                data = file.read(size)
        except OSError as error:
            raise DataError(f"{self.place(index)} cannot be read ({error.strerror}); mend or remove it.") from None
        if len(data) != size:
            raise DataError(f"{self.place(index)} is cut off after {len(data)} of {size} bytes; copy it again.")
        extension = EXTENSION_OF[PurePosixPath(self._member[index].decode()).suffix.lower()]
        return RawSample(self._key(index), extension, data, int(self._label[index]))

    def place(self, index: int) -> str:
        return f"{self._places[self._part[index]][1]}, member {self._member[index].decode()}"

    def fingerprint(self) -> str:
        """Of classes, member names, sizes and labels."""
        digest = hashlib.sha256(repr((self.classes, self._member.tolist())).encode("utf-8", "surrogateescape"))
        digest.update(self._size.tobytes() + self._label.tobytes())
        return digest.hexdigest()


class TarPerClassSource(TarSource):
    """A folder with one `<class>.tar` of JPEG or PNG files per class; classes are sorted by name.

    classes: the training set's, for a validation set; class tars that it lacks are an error.
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
    """A tar of class tars, one `<class>.tar` per class, as ImageNet's training set is published. Nothing is unpacked.

    classes and errors as for TarPerClassSource; two class tars of the same name are an error too.
    """

    def __init__(self, tar: Path, classes: Sequence[str] | None = None) -> None:
        left_out = 0
        parts: dict[str, TarImages] = {}
        with opened(tar) as file:
            for archive, member in members(file, str(tar)):
                place = f"{tar}, member {member.name}"
                name = _class_of(member.name, place) if member.isreg() else None
                if name is None:
                    left_out += not member.isdir()
                    continue
                if name in parts:
                    raise DataError(f"{parts[name].place} and {place} are both class {name}; rename or remove one of them.")
                parts[name] = _scan_inner(archive, member, tar, place)
        if not parts:
            raise DataError(f"{tar} holds no class tar; expected members <class>.tar with the images of a class.")
        names = _known_classes(parts, classes, str(tar))
        ordered = sorted(parts)
        super().__init__(names, [parts[name] for name in ordered], [names.index(name) for name in ordered], left_out)


def _scan_class(tar: Path) -> TarImages:
    with opened(tar) as file:
        return _with_images(scan_images(file, tar, str(tar)))


def _scan_inner(outer: tarfile.TarFile, member: tarfile.TarInfo, tar: Path, place: str) -> TarImages:
    """The images of a tar within a tar, at their offsets in the outer file."""
    inner = outer.extractfile(member)
    assert inner is not None  # it is a regular member
    images = scan_images(inner, tar, place)
    return _with_images(replace(images, offset=images.offset + member.offset_data))


def _with_images(images: TarImages) -> TarImages:
    if not len(images):
        raise DataError(f"{images.place} holds no .jpg, .jpeg or .png file; fill or remove it.")
    return images


def _class_of(name: str, place: str) -> str | None:
    """The class whose images a tar of this name holds; None if it is no tar."""
    if name.endswith(COMPRESSED_SUFFIXES):
        raise DataError(f"{place} {IS_COMPRESSED}")
    path = PurePosixPath(name)
    if path.suffix != ".tar":
        return None
    if not is_utf8(name):
        raise DataError(f"{name!r}, a class tar, has a name that is not UTF-8; rename it.")
    return path.stem


def _known_classes(found: Iterable[str], classes: Sequence[str] | None, place: str) -> list[str]:
    names = list(classes or sorted(found))
    if unknown := sorted(set(found) - set(names)):
        raise DataError(f"{place}: class tars {unknown[:5]} do not occur in the training set; remove or rename them.")
    return names


def open_tars(root: Path) -> dict[str, Source]:
    """`train` and `val` of a folder that holds train/<class>.tar and val/<class>.tar."""
    if missing := [split for split in ("train", "val") if not (root / split).is_dir()]:
        raise DataError(f"{root} has no folder {missing[0]}/; expected {root}/train/<class>.tar and {root}/val/<class>.tar.")
    train = TarPerClassSource(root / "train")
    return {"train": train, "val": TarPerClassSource(root / "val", train.classes)}
