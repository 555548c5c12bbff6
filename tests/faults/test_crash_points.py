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
from tests.faults.kills import changes_a_file

BEFORE = TrainState(step=4, updates=4)
EVALUATED = replace(BEFORE, evaluated_epochs=1, best_top1=50.0)
NEXT = replace(BEFORE, step=5, updates=5, evaluated_epochs=1, best_top1=50.0)


def state(train_state: TrainState) -> Snapshot:
    tensors = {"weight": torch.full((3,), float(train_state.step + 10 * train_state.evaluated_epochs))}
    return Snapshot(train_state, tensors, {"exp_avg.weight": tensors["weight"] / 2})


def crash_in_save(root: Path, new: TrainState, keep: RetentionPolicy, operation: int, torn: bool) -> bool:
    """Save in a process that ends before its n-th change of a file. Whether it did so; False if the save has fewer.

    torn: if that is to write a file, just after it was opened, when it is empty.
    """
    child = os.fork()
    if not child:
        left = operation

        def watch(event: str, arguments: tuple) -> None:
            nonlocal left
            left -= changes_a_file(event, arguments, str(root))
            if left == 0:
                left = -1
                if event == "open" and torn:
                    os.close(os.open(arguments[0], os.O_WRONLY | os.O_CREAT | os.O_TRUNC))
                os._exit(3)

        sys.addaudithook(watch)
        store.save(root, state(new), "seed: 1", is_best=new == EVALUATED, keep=keep)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, 3)
    return code == 3


@pytest.mark.parametrize("new", [EVALUATED, NEXT], ids=["in the place of one", "beside it"])
@pytest.mark.parametrize(("last", "torn"), [(1, False), (2, True)])
def test_every_point_of_a_save(tmp_path: Path, new: TrainState, last: int, torn: bool) -> None:
    """The checkpoint of step 4 is replaced by the same with its evaluation, the best one so far; or the one of step 5 follows."""
    before, keep = tmp_path / "before", RetentionPolicy(last)
    for train_state in (replace(BEFORE, step=3, updates=3), BEFORE):
        store.save(before / "checkpoints", state(train_state), "seed: 1", keep=keep)
    operation, crashed = 0, True
    while crashed:
        operation += 1
        run = shutil.copytree(before, tmp_path / f"{operation}")
        root = run / "checkpoints"
        crashed = crash_in_save(root, new, keep, operation, torn)

        found, train_state, told = store.latest_valid(run)
        assert train_state == (new if not crashed else train_state)
        assert train_state in (BEFORE, new), operation
        assert told == [], operation
        weights = store.read_safetensors(found / "model.safetensors")["weight"]
        assert torch.equal(weights, state(train_state).model["weight"]), operation
        if train_state == EVALUATED:
            assert (root / "best").read_text() == "step-00000004\n", operation

        # The run goes on.
        for later in [new] if train_state == BEFORE else [replace(new, step=new.step + 1)]:
            store.save(root, state(later), "seed: 1", is_best=later == EVALUATED, keep=keep)
            assert store.latest_valid(run)[1:] == (later, []), operation
        assert list(root.glob(".*")) == [], operation
    assert operation > 8
