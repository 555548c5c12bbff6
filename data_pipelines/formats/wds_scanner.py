"""WebDataset tar shards on disk: how one is written, and what its headers say.

A data set is one folder:

    shard-000000.tar …   members <key>.jpg|png, or <key>.npy for event frames, and <key>.cls (the class index as text)
    manifest.json        what it was made from, its classes, and for each shard its samples, bytes and SHA-256
    index-….npy          for each sample its shard, byte offset, size, label and key: a cache of the tar headers

Shards that others wrote have other names, and may lie elsewhere (indexing.py).
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator, Set
from pathlib import Path

from data_pipelines.errors import DataError
from data_pipelines.formats.keys import is_storable

IMAGES = frozenset({"jpg", "jpeg", "png"})
"""Extensions of images in shards that others wrote. Their .npy may be anything."""
EXTENSIONS = IMAGES | {"npy"}
NUMBER = re.compile(rb"\s*-?[0-9]+\s*")
"""int() takes 1_0 for 10."""
ShardRow = tuple[int, int, int, str]
"""Of one sample in its shard: offset, size, label, key."""


def scan_tar(path: Path, remedy: str, *, images: Set[str] = EXTENSIONS, place: str | None = None) -> list[ShardRow]:
    """The samples of one tar, in its order.

    images: the extensions of images. place: what messages call the tar, if not by its path. Raises DataError, naming tar and
    key, for one that is damaged or cut off, and for a sample that is not one image and one class number.
    """
    shard = _Shard(place or str(path), remedy, images)
    try:
        with tarfile.open(path, "r:") as tar:
            for member in _members(tar):
                shard.add(tar, member)
    except DataError:
        raise
    except (tarfile.TarError, OSError, ValueError, OverflowError, MemoryError, RecursionError) as error:
        # tarfile reads some headers without looking
        raise DataError(f"shard {shard.place} is no readable tar file ({_reason(error)}); {remedy}.") from None
    return shard.rows()


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """All members. tarfile itself takes a damaged header, and the end of the file, for the end of the archive."""
    last = -1
    for member in tar:
        if member.size < 0 or member.offset <= last:  # or it would be read again and again
            raise tarfile.ReadError("a header with an impossible size")
        last = member.offset
        yield member
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"it is cut off or damaged at byte {tar.offset}")


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


class _Shard:
    """What one tar has shown so far."""

    def __init__(self, place: str, remedy: str, images: Set[str]) -> None:
        self.place, self.remedy, self.extensions = place, remedy, images
        self.images: dict[str, tarfile.TarInfo] = {}
        self.labels: dict[str, int] = {}

    def add(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        if not member.isreg() or member.issparse():
            return
        if not is_storable(member.name):
            raise self.error(f"{member.name!a} in {self.place} is no name for a sample")
        key, extension = split_name(member.name)
        if extension in self.extensions:
            if other := self.images.get(key):
                what = f"is there twice ({member.name})" if other.name == member.name else f"has two images ({other.name}, {member.name})"
                raise self.error(f"sample {key} in {self.place} {what}")
            self.images[key] = member
        elif extension == "cls":
            if key in self.labels:
                raise self.error(f"sample {key} in {self.place} has two labels ({member.name})")
            self.labels[key] = self.label(tar, member)

    def label(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> int:
        file = tar.extractfile(member)
        text = file.read(30) if file else b""
        if not NUMBER.fullmatch(text) or not -(2**31) <= int(text) < 2**31:
            raise self.error(f"{member.name} in {self.place} holds {text!r}, not a class number")
        return int(text)

    def rows(self) -> list[ShardRow]:
        if unpaired := sorted(self.images.keys() ^ self.labels.keys()):
            raise self.error(f"sample {unpaired[0]} in {self.place} lacks its image or its .cls label")
        return [(member.offset_data, member.size, self.labels[key], key) for key, member in self.images.items()]

    def error(self, text: str) -> DataError:
        return DataError(f"{text}; {self.remedy}.")


def split_name(name: str) -> tuple[str, str]:
    """Key and extension of a tar member as WebDataset takes them: cut at the first dot of its last part, the extension in lower case.

    A name whose last part begins with the dot has neither.
    """
    folder, slash, last = name.rpartition("/")
    stem, _, extension = last.partition(".")
    return (f"{folder}{slash}{stem}", extension.lower()) if stem else ("", "")
