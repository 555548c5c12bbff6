"""This runs `tdformer` in one process of a run. One rank has a fault in its second step: when it takes its global batch, or after that.

    RANK=… WORLD_SIZE=… FAULT_RANK=1 FAULT=sleep [FAULT_IN=forward] python -m tests.faults.fault_worker train CONFIG --run-dir RUN

sleep: its main thread waits for ever. hold: its main thread waits for ever, and no other thread of the process can run.
raise: the program raises an error that is no user's mistake. leave: the process ends and tells nobody. kill, stop: the process
sends itself that signal.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Generator
from typing import Any

import torch

from data_pipelines.loading.batch import Batch
from launch import cli
from tdformer.distributed.watchdog import watchdog
from tdformer.training import trainer
from tdformer.training.trainer import Trainer

really_load, really_step = trainer.train_batches, Trainer._micro_step


def hang_here() -> None:
    time.sleep(1000)


def fail() -> None:
    raise ZeroDivisionError("a fault of the program")


FAULTS = {
    "sleep": hang_here,
    "hold": lambda: ctypes.PyDLL(None).sleep(1000),
    "raise": fail,
    "leave": lambda: os._exit(0),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
}


def train_batches(config: Any, data: Any, sampler: Any, first_step: int, *others: Any) -> Generator[Batch, None, None]:
    batches = really_load(config, data, sampler, first_step, *others)
    try:
        for count, batch in enumerate(batches):
            if count == sampler.accumulation and sampler.rank == int(os.environ["FAULT_RANK"]) and "FAULT_IN" not in os.environ:
                FAULTS[os.environ["FAULT"]]()
            yield batch
    finally:
        batches.close()


def micro_step(self: Trainer, *arguments: Any) -> torch.Tensor:
    if self.train_state.step == 1 and self.context.rank == int(os.environ["FAULT_RANK"]) and "FAULT_IN" in os.environ:
        FAULTS[os.environ["FAULT"]]()
    return really_step(self, *arguments)


def main() -> None:
    trainer.train_batches = train_batches
    Trainer._micro_step = micro_step  # type: ignore[method-assign]
    watchdog.HEARTBEAT_SECONDS = 0.2
    cli.main()


if __name__ == "__main__":
    main()
