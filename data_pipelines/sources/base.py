"""Defines a source: the samples of one split of a published data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from data_pipelines.formats.sample import RawSample


class LeftOut(NamedTuple):
    """A file that looks like a sample and is none, and the reason."""

    origin: str
    reason: str


class Source(Protocol):
    """A finite set of samples in a fixed order, readable by position.

    A source is pickled to the processes that write shards. So it holds no open file, and little memory.
    """

    @property
    def classes(self) -> Sequence[str]:
        """The class names, in the order of the class indices."""
        ...

    @property
    def ignored_files(self) -> int:
        """The number of files that are no samples, as their names tell."""
        ...

    @property
    def left_out(self) -> Sequence[LeftOut]:
        """The entries that have the name of a sample or of a class, and are none: broken links, files at another depth, other formats."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> RawSample:
        """Read one sample without decoding it.

        Raises DataError, naming the file, if it is damaged, and UnavailableError if it cannot be read now.
        """
        ...

    def origin(self, index: int) -> str:
        """Tell where a sample comes from, for messages: a path, or a path and the name of a member in it."""
        ...

    def fingerprint(self) -> str:
        """Hash enough of the source that sources with different samples get different hashes, ideally without reading all bytes."""
        ...
