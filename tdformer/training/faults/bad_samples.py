"""Samples that training could not read and went past: told, counted over all ranks, and limited."""

from __future__ import annotations

from collections.abc import Iterable

from data_pipelines.errors import DataError
from data_pipelines.loading.batch import Batch
from tdformer.distributed.context import DistContext


class BadSamples:
    """The count of a run. counted: what its checkpoint says. limit: above it the run ends."""

    def __init__(self, counted: int, limit: int, context: DistContext) -> None:
        self.total, self.limit, self.context = counted, limit, context
        self._new: list[str] = []

    def note(self, batches: Iterable[Batch]) -> None:
        """What this rank went past in its micro-batches."""
        self._new += [sentence for batch in batches for sentence in batch.skipped]

    def add_up(self) -> list[str]:
        """One sentence for each that any rank noted since the last call. Raises DataError, on all ranks, beyond the limit."""
        new = [sentence for of_rank in self.context.all_gather(self._new) for sentence in of_rank]
        self._new = []
        self.total += len(new)
        if self.total > self.limit:
            raise DataError(
                f"{self.total} bad samples were skipped, more than data.max_bad_samples ({self.limit}); mend the data, or raise "
                f"it; the last: {new[-1]}"
            )
        return new
