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
from collections.abc import Iterable, Iterator, Set
from pathlib import Path

import webdataset

from data_pipelines.errors import DataError
from data_pipelines.formats.index import Index, check_index, find_index, keep_index
from data_pipelines.formats.keys import is_storable
from data_pipelines.formats.manifest import Manifest, ShardInfo
from data_pipelines.sources.base import RawSample
from data_pipelines.storage.files import replace_file, sha256

IMAGES = frozenset({"jpg", "jpeg", "png"})
"""Extensions of images in shards that others wrote. Their .npy may be anything."""
EXTENSIONS = IMAGES | {"npy"}
NUMBER = re.compile(rb"\s*-?[0-9]+\s*")
"""int() takes 1_0 for 10."""

ShardRow = tuple[int, int, int, str]
"""Of one sample in its shard: offset, size, label, key."""


def shard_name(number: int) -> str:
    return f"shard-{number:06d}.tar"


def write_shard(path: Path, samples: Iterable[RawSample]) -> ShardInfo:
    """Write samples into one tar, which appears under its name when it is whole. The same samples give the same bytes."""
    written = 0

    def write(partial: Path) -> None:
        nonlocal written
        with partial.open("wb") as file, webdataset.TarWriter(file, encoder=False, mtime=0) as tar:
            for sample in samples:
                tar.write({"__key__": sample.key, sample.extension: sample.data, "cls": str(sample.label).encode()})
                written += 1

    replace_file(path, write)
    return ShardInfo(path.name, written, path.stat().st_size, sha256(path))


def load_index(folder: Path, manifest: Manifest) -> Index:
    """The saved index; made again from the tar headers, and saved, when there is none of these shards."""
    shards = manifest.shards
    if index := find_index(folder, shards):
        return index
    index = Index.of((number, *row) for number, shard in enumerate(shards) for row in scan_shard(folder, manifest, shard))
    check_index(folder, index, shards, manifest.remedy(folder))
    if not len(index):
        raise DataError(f"{folder} holds no sample; {manifest.remedy(folder)}.")
    return keep_index(folder, shards, index)


def scan_shard(folder: Path, manifest: Manifest, shard: ShardInfo) -> list[ShardRow]:
    """The samples of one shard of the set in `folder`, which must be as many as the manifest says."""
    path, remedy = shard_path(folder, manifest, shard), manifest.remedy(folder)
    rows = scan_tar(path, remedy, images=IMAGES if manifest.shards_at else EXTENSIONS)
    if len(rows) != shard.samples:
        raise DataError(f"shard {path} holds {len(rows)} samples, the manifest says {shard.samples}; {remedy}.")
    return rows


def shard_path(folder: Path, manifest: Manifest, shard: ShardInfo) -> Path:
    """Of a shard that lies on a local file system."""
    return Path(manifest.shards_at or folder) / shard.name


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
