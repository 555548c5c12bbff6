"""TODO."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.formats.images import EXTENSION_OF
from data_pipelines.formats.keys import is_utf8

COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")
"""How files start that gzip, bzip2, xz and zstd wrote: in them nothing can be sought."""
IS_COMPRESSED = "is compressed, and images are read from where they lie; decompress it first."


@dataclass(frozen=True)
class TarImages:
    """Where the images of one tar lie. The arrays have one entry per image, in the tar's order."""

    tar: Path  # the file to seek in
    place: str  # what messages call it: the file, or the file and the inner tar
    member: np.ndarray  # bytes, UTF-8: the name in the tar
    offset: np.ndarray  # int64, first byte of the image within the file
    size: np.ndarray  # int64, bytes of the image
    left_out: int  # members that are no images

    def __len__(self) -> int:
        return len(self.member)


@contextmanager
def opened(tar: Path) -> Iterator[IO[bytes]]:
    try:
        file = tar.open("rb")
    except OSError as error:
        raise DataError(f"{tar} cannot be read ({error.strerror}); mend or remove it.") from None
    with file:
        yield file


def scan_images(file: IO[bytes], tar: Path, place: str) -> TarImages:
    """Where the images lie in the uncompressed tar that is open as `file`. Errors as for `members`."""
    images, others = [], 0
    for _, member in members(file, place):
        if member.isreg() and PurePosixPath(member.name).suffix.lower() in EXTENSION_OF:
            images.append((member.name.encode(), member.offset_data, member.size))
        elif not member.isdir():
            others += 1
    names, offsets, sizes = zip(*images, strict=True) if images else ((), (), ())
    return TarImages(tar, place, np.array(names, np.bytes_), np.array(offsets, np.int64), np.array(sizes, np.int64), others)


def members(file: IO[bytes], place: str) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """The members of an uncompressed tar, in its order, each with the tar that can read it.

    Raises DataError, naming `place`, for a compressed, unreadable or cut-off tar, and for a member whose
    name leads out of the tar or is no UTF-8.
    """
    try:
        if file.read(6).startswith(COMPRESSED):
            raise DataError(f"{place} {IS_COMPRESSED}")
        file.seek(0)
        with tarfile.open(fileobj=file, mode="r:", encoding="utf-8") as tar:
            for member in tar:
                _check_member(member, place)
                yield tar, member
            _check_end(file, tar.offset, place)
    except (tarfile.TarError, OSError, OverflowError) as error:
        raise DataError(f"{place} is cut off or no readable tar file ({error}); copy it again.") from None


def _check_member(member: tarfile.TarInfo, place: str) -> None:
    if not is_utf8(member.name):
        raise DataError(f"{place}: the member name {member.name!r} is not UTF-8; rename the file and pack it again.")
    if member.name.startswith("/") or ".." in member.name.split("/"):
        raise DataError(f"{place}: the member name {member.name!r} leads out of the archive; pack it again with relative names.")
    if member.issparse() or member.size < 0:
        raise DataError(f"{place}: member {member.name!r} is not stored as one piece; pack it again without --sparse.")


def _check_end(file: IO[bytes], offset: int, place: str) -> None:
    """A tar ends in blocks of zeros. Python's tarfile takes a damaged header for the end as well, and says nothing."""
    file.seek(offset)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise DataError(f"{place} is cut off or damaged at byte {offset}; copy it again.")
