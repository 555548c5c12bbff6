"""Reads samples from tar files that have been scanned, with one seek each."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import PurePosixPath
from posixpath import normpath

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.formats.images import EXTENSION_OF
from data_pipelines.formats.keys import check_unique_keys, key_of
from data_pipelines.formats.sample import RawSample
from data_pipelines.sources.base import LeftOut
from data_pipelines.sources.tar_scan import TarImages
from data_pipelines.storage.passing_trouble import read_error


class TarSource:
    """The samples of scanned tar files. All layouts with tars use this class.

    parts: the scanned tars. labels: for each part, the class index of all its images, or an array with one index per image.
    ignored_files, left_out: those outside the scanned tars.
    Raises DataError for two images with the same key.
    """

    def __init__(
        self,
        classes: Sequence[str],
        parts: Sequence[TarImages],
        labels: Sequence[int | np.ndarray],
        ignored_files: int = 0,
        left_out: Sequence[LeftOut] = (),
    ) -> None:
        self.classes = list(classes)
        self.ignored_files = ignored_files + sum(part.ignored_files for part in parts)
        self.left_out = [*left_out, *(entry for part in parts for entry in part.left_out)]
        self._tars = [(part.tar, part.origin) for part in parts]
        self._part = np.repeat(np.arange(len(parts), dtype=np.int32), [len(part) for part in parts])
        self._member = np.concatenate([part.member for part in parts])
        self._offset = np.concatenate([part.offset for part in parts])
        self._size = np.concatenate([part.size for part in parts])
        self._label = np.concatenate([np.full(len(part), label, np.int32) for part, label in zip(parts, labels, strict=True)])
        check_unique_keys((self._key(index) for index in range(len(self))), self.origin)

    @property
    def with_images(self) -> set[str]:
        """The names of the classes that have at least one image."""
        return {self.classes[label] for label in np.unique(self._label)}

    def _key(self, index: int) -> str:
        """Make the key that the image would have in the folder of its class. Some tars contain that folder, others do not."""
        name = self.classes[self._label[index]]
        member = normpath(self._member[index].decode()).removeprefix(f"{name}/")
        return f"{name.replace('.', '_')}/{key_of(member)}"

    def __len__(self) -> int:
        return len(self._member)

    def __getitem__(self, index: int) -> RawSample:
        tar, size = self._tars[self._part[index]][0], int(self._size[index])
        try:
            with tar.open("rb") as file:
                file.seek(int(self._offset[index]))
                data = file.read(size)
        except OSError as error:
            damage = f"{self.origin(index)} cannot be read ({error.strerror}); mend or remove it."
            raise read_error(self.origin(index), error, damage, was_there=True) from None
        if len(data) != size:
            raise DataError(f"{self.origin(index)} is cut off after {len(data)} of {size} bytes; copy it again.")
        extension = EXTENSION_OF[PurePosixPath(self._member[index].decode()).suffix.lower()]
        return RawSample(self._key(index), extension, data, int(self._label[index]))

    def origin(self, index: int) -> str:
        return f"{self._tars[self._part[index]][1]}, member {self._member[index].decode()}"

    def fingerprint(self) -> str:
        """Hash classes, member names, sizes and labels."""
        digest = hashlib.sha256(repr((self.classes, self._member.tolist())).encode("utf-8", "surrogateescape"))
        digest.update(self._size.tobytes() + self._label.tobytes())
        return digest.hexdigest()
