"""Reads images that are sorted into one folder per class, the layout of most data sets."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from data_pipelines.errors import DataError
from data_pipelines.formats.images import EXTENSION_OF
from data_pipelines.formats.sample import RawSample
from data_pipelines.sources.base import Source


class ImageFolderSource:
    """The samples of a folder with one sub-folder of JPEG or PNG files per class. Classes are sorted by name.

    classes: for a validation set, the class names of the training set. A folder of another name is an error.
    Raises DataError for a folder without classes, a class folder without images, and two files with the same key.
    """

    def __init__(self, root: Path, classes: Sequence[str] | None = None) -> None:
        found = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        self.classes = list(classes or found)
        if unknown := sorted(set(found) - set(self.classes)):
            raise DataError(f"{root}: class folders {unknown[:5]} do not occur in the training set; remove or rename them.")
        class_of = {name: index for index, name in enumerate(self.classes)}
        entries = [(path, class_of[name]) for name in found for path in sorted((root / name).iterdir())]
        self._files = [(path, label) for path, label in entries if path.suffix.lower() in EXTENSION_OF and path.is_file()]
        self.ignored_files = len(entries) - len(self._files)
        if not self._files:
            raise DataError(f"{root}: no .jpg, .jpeg or .png file in any class folder; expected {root}/<class>/<image>.")
        with_images = {label for _, label in self._files}
        if empty := [name for name in found if class_of[name] not in with_images]:
            raise DataError(f"{root}: class folders {empty[:5]} hold no .jpg, .jpeg or .png file; fill or remove them.")
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
            raise DataError(f"{path} cannot be read ({error.strerror}); mend or remove it.") from None

    def origin(self, index: int) -> str:
        return str(self._files[index][0])

    def fingerprint(self) -> str:
        """Hash the class folders, file names and file sizes."""
        listing = "".join(f"{path.parent.name}/{path.name} {path.stat().st_size}\n" for path, _ in self._files)
        return hashlib.sha256(listing.encode("utf-8", "surrogateescape")).hexdigest()


def open_folders(root: Path) -> dict[str, Source]:
    """Open root/train/<class>/<image> and root/val/<class>/<image>. Both have the classes of `train`. Raises DataError."""
    if missing := [split for split in ("train", "val") if not (root / split).is_dir()]:
        raise DataError(f"{root} has no folder {missing[0]}/; expected {root}/train/<class>/<image> and {root}/val/<class>/<image>.")
    train = ImageFolderSource(root / "train")
    return {"train": train, "val": ImageFolderSource(root / "val", train.classes)}
