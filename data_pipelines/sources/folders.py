"""Reads images that are sorted into one folder per class, the layout of most data sets."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from shlex import quote

from data_pipelines.errors import DataError
from data_pipelines.formats.images import EXTENSION_OF
from data_pipelines.formats.sample import RawSample
from data_pipelines.sources.base import Source
from data_pipelines.sources.class_folders import ClassFolders, list_class_folders
from data_pipelines.sources.known_classes import known_classes
from data_pipelines.storage.passing_trouble import read_error, reading


class ImageFolderSource:
    """The samples of a folder with one sub-folder of JPEG or PNG files per class. Classes are sorted by name.

    classes: for a validation set, the class names of the training set. A folder of another name is an error.
    Raises DataError for a folder without classes, a class folder without images, and two files with the same key.
    """

    def __init__(self, root: Path, classes: Sequence[str] | None = None) -> None:
        with reading(root, was_there=True):
            listed = list_class_folders(root, classes or ())
        self.classes = known_classes(listed.classes, classes, root, "class folders")
        self.ignored_files, self.left_out = listed.others, listed.left_out
        class_of = {name: index for index, name in enumerate(self.classes)}
        self._files = [(path, class_of[name]) for path, name in listed.files]
        _require_images(root, listed)
        first_with: dict[str, Path] = {}
        for path, _ in self._files:
            if (other := first_with.setdefault(self._key(path), path)) != path:
                raise DataError(f"{other} and {path} would have the same key {self._key(path)}; rename one of them.")

    @staticmethod
    def _key(path: Path) -> str:
        """Make a key of class and file name, since two classes may use the same file name. WebDataset would cut it at a dot."""
        return f"{path.parent.name}/{path.stem}".replace(".", "_")

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> RawSample:
        path, label = self._files[index]
        try:
            return RawSample(self._key(path), EXTENSION_OF[path.suffix.lower()], path.read_bytes(), label)
        except OSError as error:
            raise read_error(path, error, f"{path} cannot be read ({error.strerror}); mend or remove it.", was_there=True) from None

    def origin(self, index: int) -> str:
        return str(self._files[index][0])

    def fingerprint(self) -> str:
        """Hash the class folders, file names and file sizes."""
        listing = "".join(f"{path.parent.name}/{path.name} {path.stat().st_size}\n" for path, _ in self._files)
        return hashlib.sha256(listing.encode("utf-8", "surrogateescape")).hexdigest()


def _require_images(root: Path, listed: ClassFolders) -> None:
    """Raise DataError, with what lies there instead, if there is no image at all, or a class folder without one."""
    with_images = {name for _, name in listed.files}
    empty = [name for name in listed.classes if name not in with_images]
    instead = [entry for entry in listed.left_out if not with_images or entry.origin.startswith(tuple(f"{root / name}/" for name in empty))]
    there = f" ({instead[0].origin}: {instead[0].reason})" if instead else ""
    if not with_images:
        raise DataError(f"{root}: no .jpg, .jpeg or .png file in any class folder; expected {root}/<class>/<image>{there}.")
    if empty:
        raise DataError(f"{root}: the class folders {', '.join(empty[:5])} hold no .jpg, .jpeg or .png file; fill or remove them{there}.")


def _refuse_tiny_imagenet(root: Path) -> None:
    """Raise DataError with the commands that list Tiny ImageNet, whose images have a level of folders that says nothing of classes."""
    if not (root / "val" / "val_annotations.txt").is_file():
        return
    commands = (
        f"""cd {quote(str(root))} && find train -name '*.JPEG' | sort | awk -F/ '{{print $0 "\\t" $2}}' > train.txt && """
        """awk '{print "val/images/" $1 "\\t" $2}' val/val_annotations.txt > val.txt"""
    )
    raise DataError(
        f"{root} is Tiny ImageNet as it is published (train/<class>/images/<image>, val/val_annotations.txt), which is read through "
        f"lists: write them, and give the same command again: ({commands})"
    )


def open_folders(root: Path) -> dict[str, Source]:
    """Open root/train/<class>/<image> and root/val/<class>/<image>. Both have the classes of `train`. Raises DataError."""
    if missing := [split for split in ("train", "val") if not (root / split).is_dir()]:
        raise DataError(f"{root} has no folder {missing[0]}/; expected {root}/train/<class>/<image> and {root}/val/<class>/<image>.")
    _refuse_tiny_imagenet(root)
    train = ImageFolderSource(root / "train")
    return {"train": train, "val": ImageFolderSource(root / "val", train.classes)}
