"""ReadAhead: the micro-batches of the next step, read before the ranks agree on what comes next."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from data_pipelines.errors import UserError
from data_pipelines.loading.batch import Batch


class ReadAhead:
    """Reads this rank's micro-batches of one optimizer step, and keeps them, or the reason why they cannot be read, until they are due.

    So the ranks learn in the same collective whether to stop, whether to save, and whether all of them can go on.
    """

    def __init__(self, batches: Iterator[Batch], accumulation: int) -> None:
        """accumulation: micro-batches of a step."""
        self._batches, self._accumulation = batches, accumulation
        self._ready: list[Batch] | None = None
        self.failure: UserError | None = None
        """Why the micro-batches cannot be read, or None."""

    def read(self) -> None:
        """Read the micro-batches of the next step, unless that is done."""
        if self._ready is not None or self.failure is not None:
            return
        try:
            self._ready = list(itertools.islice(self._batches, self._accumulation))
        except UserError as error:
            self.failure = error

    @property
    def is_ready(self) -> bool:
        """True if the micro-batches of the next step have been read."""
        return self._ready is not None

    def take(self) -> list[Batch]:
        """Return the micro-batches that `read` has read."""
        ready, self._ready = self._ready, None
        assert ready is not None
        return ready
