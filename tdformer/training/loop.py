"""The training loop. Read this file first: it is a whole run at a glance."""

from __future__ import annotations

from contextlib import closing

from tdformer import garbage
from tdformer.config import RunConfig
from tdformer.distributed.context import DistContext
from tdformer.rundir.run_dir import RunDir
from tdformer.rundir.run_lock import MayWrite, always
from tdformer.training.faults.preemption import stopping
from tdformer.training.report import reporting
from tdformer.training.trainer import Outcome, Trainer


def train(config: RunConfig, run_dir: RunDir, context: DistContext, may_write: MayWrite = always) -> Outcome:
    """Train a run from its beginning, or from its latest checkpoint, to its end or to a stop signal.

    may_write: HeldLock.may_write, which rank 0 asks before it writes into the run directory. Raises UserError, on all ranks alike, for
    what a user can mend.
    """
    with stopping(config.preemption) as stop_flag:
        trainer = Trainer(config, run_dir, context, stop_flag, may_write)
        with closing(trainer), reporting(config, run_dir, trainer.train_state, trainer.total_steps, context, may_write) as report:
            trainer.announce(report)
            garbage.search_among_new_objects()
            while not trainer.is_done():
                if trainer.evaluation_is_due():
                    trainer.evaluate(report)
                else:
                    trainer.step(report)
                must_stop, must_save = trainer.decide_on_all_ranks()
                if must_save:
                    trainer.save(report, at_end=must_stop or trainer.is_done())
                if must_stop:
                    report.stopped(stop_flag.reason or "what stopped another rank")
                    return trainer.outcome(stopped=True)
            return trainer.outcome(stopped=False)
