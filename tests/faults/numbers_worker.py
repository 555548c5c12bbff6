"""`tdformer` in one process of a run, with images that are no numbers, or with steps that do nothing.

    RANK=… WORLD_SIZE=… [NAN_RANK=1 NAN_STEPS=3,5] [IDLE_STEPS=3,5] python -m tests.faults.numbers_worker train CONFIG --run-dir RUN

Steps count from 1. NAN_RANK's last micro-batch of these steps is spoilt; idle steps take their samples, and change no weight.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from dataclasses import replace
from typing import Any

import torch

from data_pipelines.loading.batch import Batch
from launch import cli
from tdformer.training import trainer
from tdformer.training.report import Report
from tdformer.training.trainer import Trainer

really_load, really_step = trainer.train_batches, Trainer.step


def steps(variable: str) -> set[int]:
    return {int(step) for step in os.environ.get(variable, "").split(",") if step}


def train_batches(config: Any, data: Any, sampler: Any, first_step: int, *others: Any) -> Generator[Batch, None, None]:
    batches = really_load(config, data, sampler, first_step, *others)
    try:
        for count, batch in enumerate(batches):
            step, turn = divmod(count, sampler.accumulation)
            is_last = turn == sampler.accumulation - 1 and sampler.rank == int(os.environ.get("NAN_RANK", "-1"))
            if is_last and first_step + step + 1 in steps("NAN_STEPS"):
                batch = replace(batch, images_BCHW=torch.full(batch.images_BCHW.shape, torch.nan))
            yield batch
    finally:
        batches.close()


def step(self: Trainer, report: Report) -> None:
    if self.train_state.step + 1 not in steps("IDLE_STEPS"):
        return really_step(self, report)
    self.ahead.read()
    self.ahead.take()
    self.train_state = replace(self.train_state, step=self.train_state.step + 1)


def main() -> None:
    trainer.train_batches = train_batches
    Trainer.step = step  # type: ignore[method-assign]
    cli.main()


if __name__ == "__main__":
    main()
