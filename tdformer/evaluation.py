"""Computes exact accuracies: every sample is counted once over all ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from data_pipelines.loading.batch import PADDING_LABEL, Batch
from tdformer.distributed.context import DistContext

LOSS_UNIT = 2.0**-24
"""Losses of samples are rounded to multiples of this number, 6e-8 [our choice]. Sums of whole numbers below 2**53 are exact in float64."""


class Stopped(Exception):
    """Says that the evaluation ended without a result because the run was told to stop."""


@dataclass(frozen=True)
class Evaluation:
    """Holds accuracies in percent. The last segment is the network's answer. The earlier ones show what feedback adds."""

    samples: int
    top1: float
    top5: float
    loss: float
    top1_by_segment: list[float]


@torch.no_grad()
def evaluate(
    logits_of: Callable[[torch.Tensor], torch.Tensor],
    batches: Iterable[Batch],
    context: DistContext,
    should_stop: Callable[[], bool] = lambda: False,
    on_logits: Callable[[Batch, torch.Tensor], object] | None = None,
) -> Evaluation:
    """Evaluate `logits_of` (images -> [segments, B, classes]) over this rank's batches and sum up over the ranks.

    Counts and losses are whole numbers, the losses in LOSS_UNIT, and are added in float64. So the result is the same on any number of
    ranks, to the bit. Every rank must bring equally many batches. Raises Stopped, on all ranks, once should_stop is true on any of them.
    on_logits: is called with each batch, padding included, and its logits.
    """
    totals = None
    for batch in _agreed(batches, context, should_stop):
        batch = batch.to(context.device)
        logits_NBK = logits_of(batch.images_BCHW)
        if on_logits is not None:
            on_logits(batch, logits_NBK)
        counts = _count(logits_NBK.double(), batch.labels_B)
        totals = counts if totals is None else totals + counts
    assert totals is not None, "a data set is never empty"
    samples, loss, top5, *top1 = context.all_reduce_sum(totals.cpu()).tolist()
    by_segment = [100 * correct / samples for correct in top1]
    return Evaluation(int(samples), by_segment[-1], 100 * top5 / samples, loss / samples, by_segment)


def _agreed(batches: Iterable[Batch], context: DistContext, should_stop: Callable[[], bool]) -> Iterator[Batch]:
    """Yield the batches. If one rank cannot read a sample, all ranks raise its error; if one should stop before a batch, Stopped."""
    remaining = iter(batches)
    while True:
        batch, must_stop = context.on_all_ranks_unless(lambda: next(remaining, None), should_stop)
        if batch is None:
            return
        if must_stop:
            raise Stopped
        yield batch


def _count(logits_NBK: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
    """Return float64 [samples, summed loss, correct in top 5, correct in top 1 of segment 1, …, of segment N]. Padding does not count."""
    real = labels_B != PADDING_LABEL
    logits_NBK, labels_B = logits_NBK[:, real], labels_B[real]
    loss_B = nn.functional.cross_entropy(logits_NBK[-1], labels_B, reduction="none")
    loss = (loss_B / LOSS_UNIT).round().sum() * LOSS_UNIT
    top5_BK = logits_NBK[-1].topk(min(5, logits_NBK.shape[-1])).indices
    top5 = (top5_BK == labels_B[:, None]).sum()
    top1_N = (logits_NBK.argmax(-1) == labels_B).sum(1)
    return torch.cat([torch.stack([real.sum(), loss, top5]).double(), top1_N.double()])
