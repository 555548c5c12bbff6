"""What a source of samples is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from data_pipelines.formats.sample import RawSample


class Source(Protocol):
    """A finite set of samples in a fixed order, readable by position.

    It is pickled to the processes that write shards, so it holds no open file, and no more in memory than it must.
    """

    @property
    def classes(self) -> Sequence[str]:
        """Their names, in the order of the class indices."""
        ...

    @property
    def left_out(self) -> int:
        """Files that are there but are no sample, by their names."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> RawSample:
        """Read one sample. Its bytes are not looked into. Raises DataError, naming the file, if it cannot be read."""
        ...

    def place(self, index: int) -> str:
        """Where a sample comes from, for messages and the list of what was left out: a path, or a path and a member."""
        ...

    def fingerprint(self) -> str:
        """A digest that differs between sources whose samples differ, without reading all of them."""
        ...
