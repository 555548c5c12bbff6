"""`tdformer` in one process of a run, of which one rank gets a signal at a certain moment.

    RANK=… WORLD_SIZE=… SIGNAL=SIGUSR1 SIGNAL_RANK=1 SIGNAL_IN=training python -m tests.faults.signals_worker train CONFIG --run-dir RUN

training: in the second step. evaluation: at its second batch. saving: in the thread that writes the third checkpoint, before it
gets its name, and from then on in every save.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any

from data_pipelines.loading.batch import Batch
from launch import cli
from tdformer.checkpoint import store
from tdformer.training import trainer

really_load, really_evaluate, really_put = trainer.train_batches, trainer.evaluation_batches, store._put


def send(moment: str) -> None:
    if (os.environ["SIGNAL_IN"], os.environ["SIGNAL_RANK"]) == (moment, os.environ["RANK"]):
        os.kill(os.getpid(), signal.Signals[os.environ["SIGNAL"]])


def watched(batches: Iterable[Batch], last: int, moment: str) -> Generator[Batch, None, None]:
    for count, batch in enumerate(batches):
        if count == last:
            send(moment)
        yield batch


def train_batches(config: Any, data: Any, sampler: Any, first_step: int, *others: Any) -> Generator[Batch, None, None]:
    return watched(really_load(config, data, sampler, first_step, *others), sampler.accumulation, "training")


def evaluation_batches(config: Any, data: Any, **options: Any) -> Generator[Batch, None, None]:
    return watched(really_evaluate(config, data, **options), 1, "evaluation")


def put(partial: Path, final: Path, require_lock: Callable[[], None]) -> None:
    if final.name >= "step-00000003":
        send("saving")
        time.sleep(0.3)
    really_put(partial, final, require_lock)


def main() -> None:
    trainer.train_batches, trainer.evaluation_batches, store._put = train_batches, evaluation_batches, put
    cli.main()


if __name__ == "__main__":
    main()
