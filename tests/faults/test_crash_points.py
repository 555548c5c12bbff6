"""A process that ends before any of the changes that a save makes to files: what it leaves is whole, and nothing of it is lost."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tdformer.checkpoint import store
from tdformer.checkpoint.store import RetentionPolicy
from tdformer.checkpoint.train_state import Snapshot, TrainState
from tdformer.models.weights import read_safetensors
from tdformer.rundir.run_dir import RunDir
from tests.faults.kills import changes_a_file

BEFORE = TrainState(step=4, updates=4)
EVALUATED = replace(BEFORE, evaluated_epochs=1, best_top1=50.0)
NEXT = replace(BEFORE, step=5, updates=5, evaluated_epochs=1, best_top1=50.0)


def state(train_state: TrainState) -> Snapshot:
    tensors = {"weight": torch.full((3,), float(train_state.step + 10 * train_state.evaluated_epochs))}
    return Snapshot(train_state, tensors, {"exp_avg.weight": tensors["weight"] / 2})


def crash_in_save(run_dir: RunDir, new: TrainState, retention: RetentionPolicy, operation: int, torn: bool) -> str:
    """Save in a process that ends before its n-th change of a file. Return that change; empty if the save has fewer.

    torn: a file that the change would write was already opened, and is empty.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        left = operation

        def watch(event: str, arguments: tuple) -> None:
            nonlocal left
            left -= changes_a_file(event, arguments, str(run_dir.path))
            if left == 0:
                left = -1
                os.write(writing, f"{event} {Path(arguments[0]).name}".encode())
                if event == "open" and torn:
                    os.close(os.open(arguments[0], os.O_WRONLY | os.O_CREAT | os.O_TRUNC))
                os._exit(3)

        sys.addaudithook(watch)
        store.save(run_dir, state(new), "seed: 1", is_best=new == EVALUATED, retention=retention)
        os._exit(0)
    os.close(writing)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reading) as pipe:
        change = pipe.read()
    assert os.waitstatus_to_exitcode(status) == (3 if change else 0)
    return change


@pytest.mark.parametrize(
    ("new", "commit"),
    [(EVALUATED, "os.rename .partial-step-00000004"), (NEXT, "os.rename .latest")],
    ids=["in the place of one", "beside it"],
)
@pytest.mark.parametrize(("last", "torn"), [(1, False), (2, True)])
def test_every_point_of_a_save(tmp_path: Path, new: TrainState, commit: str, last: int, torn: bool) -> None:
    """The checkpoint of step 4 is replaced by the same with its evaluation, the best one so far; or the one of step 5 follows.

    One change of a file is the commit. A crash before it leaves the old checkpoint to go on from, and a crash after it the new one.
    """
    before, retention = RunDir(tmp_path / "before"), RetentionPolicy(last)
    before.path.mkdir()
    for train_state in (replace(BEFORE, step=3, updates=3), BEFORE):
        store.save(before, state(train_state), "seed: 1", retention=retention)
    operation, expected, change = 0, BEFORE, "none yet"
    while change:
        operation += 1
        run_dir = RunDir(shutil.copytree(before.path, tmp_path / f"{operation}"))
        change = crash_in_save(run_dir, new, retention, operation, torn)

        found, train_state, warnings = store.latest_valid(run_dir)
        assert train_state == expected, (operation, change)
        assert warnings == [], operation
        weights = read_safetensors(found.model)["weight"]
        assert torch.equal(weights, state(train_state).model["weight"]), operation
        if train_state == EVALUATED:
            assert run_dir.best.read_text() == "step-00000004\n", operation

        # The run goes on.
        for later in [new] if train_state == BEFORE else [replace(new, step=new.step + 1)]:
            store.save(run_dir, state(later), "seed: 1", is_best=later == EVALUATED, retention=retention)
            assert store.latest_valid(run_dir)[1:] == (later, []), operation
        assert [*run_dir.checkpoints.glob(".*"), *run_dir.path.glob(".*")] == [], operation
        assert run_dir.last_saved.read_text() == run_dir.latest.read_text(), operation
        if change.startswith(commit):
            expected = new
    assert expected == new, "the save was never committed"
    assert operation > 8
