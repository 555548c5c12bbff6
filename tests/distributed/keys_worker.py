"""`tdformer` in one process of a run, which also writes down the keys of every micro-batch that training takes.

    RANK=… WORLD_SIZE=… KEYS=FOLDER python -m tests.distributed.keys_worker train CONFIG --run-dir RUN

Appends to FOLDER/<rank>.jsonl lines {"step": …, "number": …, "keys": […]}: the step that the micro-batch belongs to, and its
number in that step's global batch, over all ranks.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

from data_pipelines.loading.batch import Batch
from launch import cli
from tdformer.training import trainer

really_load = trainer.train_batches


def train_batches(config: Any, data: Any, sampler: Any, first_step: int, *others: Any) -> Generator[Batch, None, None]:
    path = Path(os.environ["KEYS"]) / f"{sampler.rank}.jsonl"
    batches = really_load(config, data, sampler, first_step, *others)
    try:
        for count, batch in enumerate(batches):
            step, turn = divmod(count, sampler.accumulation)
            line = {"step": first_step + step, "number": turn * sampler.world_size + sampler.rank, "keys": batch.keys}
            with path.open("a") as file:
                file.write(json.dumps(line) + "\n")
            yield batch
    finally:
        batches.close()


def main() -> None:
    trainer.train_batches = train_batches
    cli.main()


if __name__ == "__main__":
    main()
