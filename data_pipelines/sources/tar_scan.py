"""Finds the images in tar files, so that each can be read with one seek."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.formats.images import EXTENSION_OF, looks_like_image
from data_pipelines.formats.keys import is_utf8
from data_pipelines.sources.base import LeftOut
from data_pipelines.sources.entries import NO_JPEG_OR_PNG
from data_pipelines.storage.passing_trouble import SEE_TO_IT, read_error

COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")
"""The first bytes of files that gzip, bzip2, xz and zstd wrote. Seeking is not possible in them."""
IS_COMPRESSED = "is compressed, and images are read from where they lie; decompress it first."


@dataclass(frozen=True)
class TarImages:
    """The positions of the images in one tar. The arrays have one entry per image, in the order of the tar.

    tar: the file to seek in. origin: what messages call it: the file, or the file and the tar inside it.
    member: names in the tar, UTF-8 bytes [N]. offset: first byte of each image in the file, int64 [N]. size: bytes, int64 [N].
    ignored_files: number of members without the name of an image. left_out: members with such a name that are none.
    """

    tar: Path
    origin: str
    member: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    ignored_files: int
    left_out: list[LeftOut]

    def __len__(self) -> int:
        return len(self.member)


@contextmanager
def open_tar(tar: Path) -> Iterator[IO[bytes]]:
    """Open a tar file for reading. Raises DataError or UnavailableError if it cannot be opened."""
    try:
        file = tar.open("rb")
    except OSError as error:
        raise read_error(tar, error, f"{tar} cannot be read ({error.strerror}); {SEE_TO_IT}.", was_there=True) from None
    with file:
        yield file


def scan_images(file: IO[bytes], tar: Path, origin: str) -> TarImages:
    """Find the images in the uncompressed tar that is open as `file`. Raises DataError as `members` does."""
    images, others = [], 0
    left_out: list[LeftOut] = []
    for _, member in members(file, origin):
        if member.isdir() or not looks_like_image(member.name):
            others += not member.isdir()
        elif reason := why_no_image_member(member):
            left_out.append(LeftOut(f"{origin}, member {member.name}", reason))
        else:
            images.append((member.name.encode(), member.offset_data, member.size))
    names, offsets, sizes = zip(*images, strict=True) if images else ((), (), ())
    return TarImages(tar, origin, np.array(names, np.bytes_), np.array(offsets, np.int64), np.array(sizes, np.int64), others, left_out)


def why_no_image_member(member: tarfile.TarInfo) -> str | None:
    """Say why a member with the name of an image is none that can be read, or return None."""
    if member.issym() or member.islnk():
        return f"it is a link to {member.linkname}, and a tar is read without following links; pack it again with --dereference"
    if not member.isreg():
        return "it is no plain file; remove it"
    return None if PurePosixPath(member.name).suffix.lower() in EXTENSION_OF else NO_JPEG_OR_PNG


def members(file: IO[bytes], origin: str) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Yield the members of an uncompressed tar, in its order, each with the TarFile that reads it.

    Raises DataError, naming `origin`, for a compressed, unreadable or cut-off tar, and for a member whose name leads out of the tar
    or is not UTF-8.
    """
    try:
        if file.read(6).startswith(COMPRESSED):
            raise DataError(f"{origin} {IS_COMPRESSED}")
        file.seek(0)
        with tarfile.open(fileobj=file, mode="r:", encoding="utf-8") as tar:
            for member in tar:
                _check_member(member, origin)
                yield tar, member
            _check_end(file, tar.offset, origin)
    except (tarfile.TarError, OSError, OverflowError) as error:
        damage = f"{origin} is cut off or no readable tar file ({error}); copy it again."
        raise read_error(origin, error, damage, was_there=True) from None


def _check_member(member: tarfile.TarInfo, origin: str) -> None:
    if not is_utf8(member.name):
        raise DataError(f"{origin}: the member name {member.name!r} is not UTF-8; rename the file and pack it again.")
    if member.name.startswith("/") or ".." in member.name.split("/"):
        raise DataError(f"{origin}: the member name {member.name!r} leads out of the archive; pack it again with relative names.")
    if member.issparse() or member.size < 0:
        raise DataError(f"{origin}: member {member.name!r} is not stored as one piece; pack it again without --sparse.")


def _check_end(file: IO[bytes], offset: int, origin: str) -> None:
    """Check that the tar ends in a block of zeros. tarfile alone takes a damaged header for the end, and raises nothing."""
    file.seek(offset)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise DataError(f"{origin} is cut off or damaged at byte {offset}; copy it again.")
