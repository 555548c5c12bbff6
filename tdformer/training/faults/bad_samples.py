"""Counts samples that training could not read and replaced, over all ranks, and limits their number."""

from __future__ import annotations

from collections.abc import Iterable

from data_pipelines.errors import DataError
from data_pipelines.loading.batch import Batch
from tdformer.distributed.context import DistContext


class BadSamples:
    """Counts the bad samples of a run. counted: the number in its checkpoint. limit: the largest number that is allowed."""

    def __init__(self, counted: int, limit: int, context: DistContext) -> None:
        self.total, self.limit, self.context = counted, limit, context
        self._new: list[str] = []

    def note(self, batches: Iterable[Batch]) -> None:
        """Note the samples that were replaced in this rank's micro-batches."""
        self._new += [sentence for batch in batches for sentence in batch.skipped]

    def add_up(self) -> list[str]:
        """Return one sentence for each sample that any rank noted since the last call. Collective.

        Raises DataError, on all ranks, if there are more than the limit.
        """
        new = [sentence for of_rank in self.context.all_gather(self._new) for sentence in of_rank]
        self._new = []
        self.total += len(new)
        if self.total > self.limit:
            raise DataError(
                f"{self.total} bad samples were skipped, more than data.max_bad_samples ({self.limit}); mend the data, or raise "
                f"it; the last: {new[-1]}"
            )
        return new
