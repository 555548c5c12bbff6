"""Reads the corruption suite ImageNet-C: one source per corruption and severity.

The suite is published at https://github.com/hendrycks/robustness as <group>/<corruption>/<severity>/<class>/<image>.JPEG. Some of
its archives unpack without the group.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_pipelines.errors import DataError
from data_pipelines.sources.base import Source
from data_pipelines.sources.cifar10_c import SEVERITIES
from data_pipelines.sources.folders import ImageFolderSource


def open_imagenet_c(root: Path) -> dict[str, Source]:
    """Open all corruptions and severities in a folder. The splits are named `gaussian_noise-1` and so on.

    All splits have the same classes: all that occur anywhere in the suite, sorted.
    Raises DataError, naming the folder, for any other layout.
    """
    folders: dict[str, Path] = {}
    for corruption in _corruptions(root):
        for severity in _severities(corruption):
            name = f"{corruption.name}-{severity.name}"
            if (other := folders.setdefault(name, severity)) != severity:
                raise DataError(f"{other} and {severity} hold the same corruption and severity; remove one of them.")
    classes = sorted({folder.name for severity in folders.values() for folder in _folders_in(severity)})
    return {name: ImageFolderSource(folder, classes) for name, folder in folders.items()}


def _corruptions(root: Path) -> list[Path]:
    """List the folders of corruptions, whether they are in groups or not.

    Raises DataError for any other folder: if it were skipped, an incomplete suite would look complete.
    """
    found: list[Path] = []
    for folder in _folders_in(root) if root.is_dir() else []:
        corruptions: Sequence[Path] = [folder] if _severities(folder) else _folders_in(folder)
        if wrong := [path for path in corruptions if not _severities(path)] or ([] if corruptions else [folder]):
            raise DataError(f"{wrong[0]} holds no folder 1 … 5; expected {root}/[<group>/]<corruption>/<severity>/<class>/<image>.")
        found += corruptions
    if not found:
        raise DataError(f"{root} holds no folder; expected {root}/[<group>/]<corruption>/<severity>/<class>/<image>.")
    return found


def _severities(corruption: Path) -> list[Path]:
    return [folder for folder in _folders_in(corruption) if folder.name in map(str, SEVERITIES)]


def _folders_in(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir())
