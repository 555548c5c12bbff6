"""Knows the published archives of CIFAR-10 and CIFAR-100, and reads their members."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipelines.errors import DataError
from data_pipelines.storage.passing_trouble import read_error


@dataclass(frozen=True)
class CifarArchive:
    """The published names of one data set: its archive, the folder and members in it, and the entries of their dictionaries."""

    archive: str
    folder: str
    train: tuple[str, ...]
    val: tuple[str, ...]
    meta: str
    labels: bytes
    class_names: bytes


CIFAR10 = CifarArchive(
    archive="cifar-10-python.tar.gz",
    folder="cifar-10-batches-py",
    train=tuple(f"data_batch_{number}" for number in range(1, 6)),
    val=("test_batch",),
    meta="batches.meta",
    labels=b"labels",
    class_names=b"label_names",
)
CIFAR100 = CifarArchive(
    archive="cifar-100-python.tar.gz",
    folder="cifar-100-python",
    train=("train",),
    val=("test",),
    meta="meta",
    labels=b"fine_labels",
    class_names=b"fine_label_names",
)
CIFAR_ARCHIVES = {10: CIFAR10, 100: CIFAR100}
Member = tuple[str, bytes]
"""The name of a member for messages, and its content."""


def read_members(path: Path, published: CifarArchive) -> dict[str, Member]:
    """Read the members that open_cifar needs, by name, from an archive or a folder."""
    wanted = (*published.train, *published.val, published.meta)
    try:
        members = _read_folder(path, wanted) if path.is_dir() else _read_archive(path, published.folder, wanted)
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        reason = " ".join(str(error).split())  # tarfile's message has several lines
        raise read_error(path, error, f"{path} cannot be read ({reason}); download {published.archive} again.") from None
    if missing := [name for name in wanted if name not in members]:
        raise DataError(f"{path} has no {missing[0]}; expected the published {published.archive} or its folder {published.folder}.")
    return members


def _read_folder(folder: Path, wanted: Sequence[str]) -> dict[str, Member]:
    paths = [folder / name for name in wanted]
    return {path.name: (str(path), path.read_bytes()) for path in paths if path.is_file()}


def _read_archive(path: Path, folder: str, wanted: Sequence[str]) -> dict[str, Member]:
    """Read the members in one pass, since seeking back in a compressed archive means to start again."""
    members: dict[str, Member] = {}
    with tarfile.open(path) as tar:
        for info in tar:
            parent, _, name = info.name.rpartition("/")
            content = tar.extractfile(info) if parent == folder and name in wanted and info.isfile() else None
            if content is not None:
                members[name] = (f"{path} {info.name}", content.read())
    return members
