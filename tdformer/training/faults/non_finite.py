"""Global batches whose loss or gradient is not finite: their samples are recorded, and the run may be ended."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from data_pipelines.errors import UserError
from data_pipelines.loading.batch import Batch
from data_pipelines.storage.files import replace_file
from tdformer.distributed.context import DistContext
from tdformer.rundir.run_dir import RunDir


class NonFiniteError(UserError):
    """Says that the loss or a gradient is not finite, and that training may not pass over it."""


def refusal(found: str, count: int, allowed: int, listed: Path) -> NonFiniteError:
    """Return the error of a run that may not pass over its `count`-th such global batch. listed: the file of its samples."""
    others = f" and more than training.max_non_finite ({allowed}) were skipped" if count > 1 else ""
    return NonFiniteError(
        f"{found}{others}; the weights are from before, the samples are listed in {listed}. Lower optimizer.base_lr, set "
        f"training.clip_grad, use training.precision=fp32, or go past such steps with training.on_non_finite=skip or rewind."
    )


def record_samples(run_dir: RunDir, step: int, batches: Sequence[Batch], losses: Sequence[torch.Tensor], context: DistContext) -> Path:
    """Write the sample keys of a global batch, and the loss of each micro-batch, to a file. Return its path. Collective."""
    own = [{"loss": _as_json(float(loss)), "keys": list(batch.keys)} for batch, loss in zip(batches, losses, strict=True)]
    by_rank = context.all_gather(own)
    path = run_dir.non_finite / f"step-{step:08d}.json"
    if context.is_rank0:
        content = json.dumps({"step": step, "ranks": by_rank}, indent=1)
        try:
            run_dir.non_finite.mkdir(exist_ok=True)
            replace_file(path, lambda partial: partial.write_text(content))
        except OSError as error:
            print(f"warning: {path} cannot be written ({error}).", file=sys.stderr)
    return path


def _as_json(value: float) -> float | str:
    """Return text for NaN and infinity, which JSON does not know."""
    return value if math.isfinite(value) else str(value)
