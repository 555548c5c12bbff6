"""Numbers going wrong: global batches whose loss or gradient is not finite, and losses out of line."""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import torch

from data_pipelines.errors import UserError
from data_pipelines.loading.batch import Batch
from data_pipelines.storage.files import replace_file
from tdformer.distributed.context import DistContext

FOLDER = "non_finite"

SPIKE_WINDOW, SPIKE_DEVIATIONS = 100, 10.0
"""A loss counts as a spike if it lies so many median absolute deviations above the median of the losses before it. (Our choice.)"""


class NonFiniteError(UserError):
    """The loss or a gradient is not finite, and training may not go past it."""


def write_down(run_dir: Path, step: int, batches: Sequence[Batch], losses: Sequence[torch.Tensor], context: DistContext) -> Path:
    """The keys of the global batch's samples, and the loss of each of its micro-batches. Collective."""
    own = [{"loss": _as_json(float(loss)), "keys": list(batch.keys)} for batch, loss in zip(batches, losses, strict=True)]
    by_rank = context.all_gather(own)
    path = run_dir / FOLDER / f"step-{step:08d}.json"
    if context.is_rank0:
        content = json.dumps({"step": step, "ranks": by_rank}, indent=1)
        try:
            path.parent.mkdir(exist_ok=True)
            replace_file(path, lambda partial: partial.write_text(content))
        except OSError as error:
            print(f"warning: {path} cannot be written ({error}).", file=sys.stderr)
    return path


def _as_json(value: float) -> float | str:
    """JSON knows no NaN."""
    return value if math.isfinite(value) else str(value)


class LossSpikes:
    """Watches the loss of every optimizer step. It only tells: what to do about a spike is the user's choice."""

    def __init__(self) -> None:
        self._losses: deque[float] = deque(maxlen=SPIKE_WINDOW)

    def is_spike(self, loss: float) -> bool:
        before = list(self._losses)
        self._losses.append(loss)
        if len(before) < SPIKE_WINDOW:
            return False
        median = statistics.median(before)
        deviation = statistics.median(abs(value - median) for value in before)
        return loss > median + SPIKE_DEVIATIONS * deviation > median
