"""Lists a folder with one sub-folder of images per class, and everything in it that looks like an image and is no sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_pipelines.formats.images import looks_like_image
from data_pipelines.sources.base import LeftOut
from data_pipelines.sources.entries import LINK_TO_NOTHING, TOO_DEEP, files_below, why_no_file, why_no_image


@dataclass
class ClassFolders:
    """What a folder of class folders holds.

    classes: names of the class folders. files: the images with their classes, both sorted. left_out: see Source. others: number of files
    that have not the name of an image.
    """

    classes: list[str] = field(default_factory=list)
    files: list[tuple[Path, str]] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    others: int = 0


def list_class_folders(root: Path, known: Sequence[str] = ()) -> ClassFolders:
    """List root/<class>/<image>. known: names of classes of the training set. Raises OSError if something cannot be looked at."""
    listed = ClassFolders()
    for entry in sorted(root.iterdir()):
        if entry.name.startswith("."):
            listed.others += 1
        elif entry.is_dir():
            listed.classes.append(entry.name)
            _list_class(entry, listed)
        elif reason := _why_no_class(entry, known):
            listed.left_out.append(LeftOut(str(entry), reason))
        else:
            listed.others += 1
    return listed


def _why_no_class(entry: Path, known: Sequence[str]) -> str | None:
    """Say why an entry beside the class folders, which is no folder, looks like lost samples; None if it does not."""
    if looks_like_image(entry.name):
        return why_no_image(entry) or "it lies in no class folder; move it into one"
    if why_no_file(entry) == LINK_TO_NOTHING:
        return LINK_TO_NOTHING
    return "it has the name of a class and is no folder; remove it" if entry.name in known else None


def _list_class(folder: Path, listed: ClassFolders) -> None:
    for path in sorted(folder.iterdir()):
        if looks_like_image(path.name):
            reason = why_no_image(path)
            if reason is None:
                listed.files.append((path, folder.name))
            else:
                listed.left_out += [LeftOut(str(path), reason), *(files_below(path, TOO_DEEP) if path.is_dir() else ())]
        elif path.is_dir():
            listed.left_out += files_below(path, TOO_DEEP)
        elif why_no_file(path) == LINK_TO_NOTHING:
            listed.left_out.append(LeftOut(str(path), LINK_TO_NOTHING))
        else:
            listed.others += 1
