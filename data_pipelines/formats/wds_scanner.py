"""Reads the headers of a WebDataset tar, and finds where each sample lies."""

from __future__ import annotations

import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Set
from pathlib import Path
from typing import NamedTuple

from data_pipelines.errors import DataError, UserError
from data_pipelines.formats.images import looks_like_image
from data_pipelines.formats.keys import is_valid_key
from data_pipelines.storage.passing_trouble import read_error, reason_of

IMAGES = frozenset({"jpg", "jpeg", "png"})
"""Extensions of images in shards that others wrote. Their .npy members may be anything, so they are not taken."""
EXTENSIONS = IMAGES | {"npy"}
"""Extensions of samples in shards of ours."""
NUMBER = re.compile("[0-9]+")
INTEGER = re.compile(rb"\s*-?[0-9]+\s*")
"""The labels that are accepted. int() alone would take 1_0 for 10."""

ShardRow = tuple[int, int, int, str]
"""The offset, size, label and key of a sample in its shard."""


class ShardScan(NamedTuple):
    """What one tar holds.

    unused: the number of members that belong to no sample, by extension, in which N stands for any number.
    lost: those of them that look like images, each with the reason why none of the samples has it.
    """

    rows: list[ShardRow]
    unused: dict[str, int]
    lost: list[str]


def scan_tar(path: Path, remedy: str, *, images: Set[str] = EXTENSIONS, name: str | None = None) -> list[ShardRow]:
    """List the samples of one tar, in its order.

    images: extensions of members that are images. name: what messages call the tar; None: its path.
    Raises DataError, with the tar and the key, for a tar that is damaged or cut off, and for a sample that does not have exactly one
    image and one class number. Raises UnavailableError if the tar cannot be read now.
    """
    return scan_members(path, remedy, images=images, name=name).rows


def scan_members(path: Path, remedy: str, *, images: Set[str] = EXTENSIONS, name: str | None = None) -> ShardScan:
    """List the samples of one tar as scan_tar does, and the members that belong to no sample."""
    shard = _TarSamples(name or str(path), remedy, images)
    try:
        with tarfile.open(path, "r:") as tar:
            for member in _members(tar):
                shard.add(tar, member)
    except UserError:
        raise
    except (tarfile.TarError, OSError, ValueError, OverflowError, MemoryError, RecursionError) as error:
        # tarfile does not check all header fields, so a damaged one may raise any of these, even MemoryError
        damage = f"shard {shard.name} is no readable tar file ({reason_of(error)}); {remedy}."
        if isinstance(error, MemoryError):
            raise DataError(damage) from None
        raise read_error(f"shard {shard.name}", error, damage, was_there=True) from None
    return ShardScan(shard.rows(), dict(shard.unused), shard.lost)


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield all members, and check the end. tarfile alone takes a damaged header, or the end of the file, for the end of the tar."""
    last = -1
    for member in tar:
        if member.size < 0 or member.offset <= last:  # such a header would lead tarfile back to itself for ever
            raise tarfile.ReadError("a header with an impossible size")
        last = member.offset
        yield member
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"it is cut off or damaged at byte {tar.offset}")


class _TarSamples:
    """Collects the images and labels of one tar by their keys."""

    def __init__(self, name: str, remedy: str, images: Set[str]) -> None:
        self.name, self.remedy, self.extensions = name, remedy, images
        self.images: dict[str, tarfile.TarInfo] = {}
        self.labels: dict[str, int] = {}
        self.unused: Counter[str] = Counter()
        self.lost: list[str] = []

    def add(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        key, extension = split_name(member.name)
        if not member.isreg() or member.issparse():
            if not member.isdir():
                self._pass_over(member, extension, "it is a link, or not stored as one piece")
            return
        if not is_valid_key(member.name):
            raise self._error(f"{member.name!a} in {self.name} is no name for a sample")
        if extension in self.extensions:
            self._add_image(key, member)
        elif extension == "cls":
            if key in self.labels:
                raise self._error(f"sample {key} in {self.name} has two labels ({member.name})")
            self.labels[key] = self._label(tar, member)
        else:
            self._pass_over(member, extension, _why_unused(extension))

    def _pass_over(self, member: tarfile.TarInfo, extension: str, reason: str) -> None:
        """Note a member that belongs to no sample."""
        self.unused[NUMBER.sub("N", extension) if extension.isprintable() else ""] += 1
        if looks_like_image(member.name):
            self.lost.append(f"{member.name if member.name.isprintable() else ascii(member.name)}: {reason}")

    def _add_image(self, key: str, member: tarfile.TarInfo) -> None:
        if other := self.images.get(key):
            what = f"is there twice ({member.name})" if other.name == member.name else f"has two images ({other.name}, {member.name})"
            raise self._error(f"sample {key} in {self.name} {what}")
        self.images[key] = member

    def _label(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> int:
        file = tar.extractfile(member)
        text = file.read(30) if file else b""
        if not INTEGER.fullmatch(text) or not -(2**31) <= int(text) < 2**31:
            raise self._error(f"{member.name} in {self.name} holds {text!r}, not a class number")
        return int(text)

    def rows(self) -> list[ShardRow]:
        if unpaired := sorted(self.images.keys() ^ self.labels.keys()):
            raise self._error(f"sample {unpaired[0]} in {self.name} lacks its image or its .cls label")
        return [(member.offset_data, member.size, self.labels[key], key) for key, member in self.images.items()]

    def _error(self, text: str) -> DataError:
        return DataError(f"{text}; {self.remedy}.")


def _why_unused(extension: str) -> str:
    """Say why a plain member with this extension belongs to no sample."""
    if "." in extension:
        return f"WebDataset cuts a name at its first dot, which makes {extension!a} its extension"
    return "it is no .jpg, .jpeg or .png" if extension else "its name begins with a dot"


def split_name(name: str) -> tuple[str, str]:
    """Split the name of a tar member into key and extension, as WebDataset does.

    The cut is at the first dot of the last path component. The extension becomes lower case. A component that begins with a dot
    has no key and no extension: ("", "").
    """
    folder, slash, last = name.rpartition("/")
    stem, _, extension = last.partition(".")
    return (f"{folder}{slash}{stem}", extension.lower()) if stem else ("", "")
