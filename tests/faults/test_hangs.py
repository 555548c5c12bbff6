"""A rank that dies or hangs ends the run on all ranks soon, under any launcher. It is named, and the last whole checkpoint stays."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from tdformer.checkpoint.format import Checkpoint, check
from tdformer.rundir.run_dir import RunDir
from tests.conftest import run_id_of, write_config
from tests.distributed.starter import Started, start_ranks

pytestmark = pytest.mark.slow

LOST = 69
TIMEOUT = 2


class Faulty:
    """This is a run of `world_size` ranks, started as torchrun does. The victim has the fault in its second step."""

    def __init__(self, fault: str, victim: int, world_size: int, config: dict, folder: Path, **environment: str) -> None:
        config["training"] |= {"epochs": 1000, "global_batch": 4 * world_size}
        config["checkpoint"] |= {"background": False}
        config["watchdog"] = {"timeout_s": TIMEOUT, "slow_timeout_s": 60}
        self.run, self.victim, self.uri = folder / "run", victim, config["tracking"]["uri"]
        arguments = ["train", write_config(config, folder), "--run-dir", self.run]
        environment |= {"FAULT": fault, "FAULT_RANK": str(victim)}
        self.ranks = start_ranks(world_size, "tests.faults.fault_worker", arguments, folder / "rank", environment)

    def codes_of_others(self) -> set[int]:
        return {rank.wait(timeout=60) for number, rank in enumerate(self.ranks) if number != self.victim}

    def end(self) -> None:
        for rank in self.ranks:
            rank.kill()

    def errors(self) -> list[str]:
        """Return the error lines of all ranks, without tracebacks."""
        return [line for rank in self.ranks for line in rank.output("stderr").splitlines() if line.startswith("error:")]

    def check_the_rest(self) -> None:
        """Check that one rank names the victim, that the checkpoint before the fault is whole, and that MLflow shows the run as failed."""
        assert len(self.errors()) == 1, self.errors()
        assert f"rank {self.victim} (process {self.ranks[self.victim].pid} on " in self.errors()[0]
        assert "; the run is ended on all ranks." in self.errors()[0]
        assert f"The last whole checkpoint is step-00000001; go on with: tdformer train {self.run} --processes" in self.errors()[0]
        check(Checkpoint(RunDir(self.run).checkpoints, "step-00000001"))
        run_id = run_id_of(self.run)
        assert MlflowClient(self.uri).get_run(run_id).info.status == "FAILED"

    def stacks(self, rank: int) -> str:
        return (self.run / "stacks" / f"rank-{rank}.txt").read_text()


@pytest.mark.parametrize(
    ("fault", "victim", "world_size", "words"),
    [
        ("kill", 1, 3, "died or was cut off"),
        ("kill", 0, 2, "died or was cut off"),
        ("leave", 1, 2, "died or was cut off"),
        ("raise", 0, 2, "ended with an error: ZeroDivisionError: a fault of the program"),
        ("raise", 2, 3, "ended with an error: ZeroDivisionError: a fault of the program"),
    ],
)
def test_a_dead_rank_ends_the_others_at_once(
    run_config: dict, tmp_path: Path, fault: str, victim: int, world_size: int, words: str
) -> None:
    run = Faulty(fault, victim, world_size, run_config, tmp_path)
    try:
        ended = run.ranks[victim].wait(timeout=60)
        start = time.monotonic()
        assert run.codes_of_others() == {LOST}
        assert time.monotonic() - start < 20
        assert ended == {"kill": -signal.SIGKILL, "leave": 0, "raise": 1}[fault]
        assert words in run.errors()[0]
        run.check_the_rest()
        others = [rank.output("stderr") for number, rank in enumerate(run.ranks) if number != victim]
        assert not any("Traceback" in text for text in others), others
        assert not (run.run / "stacks").exists()
    finally:
        run.end()


@pytest.mark.parametrize(("victim", "world_size"), [(0, 2), (1, 3)])
def test_a_stopped_rank_is_named_and_the_stacks_of_the_others_are_kept(
    run_config: dict, tmp_path: Path, victim: int, world_size: int
) -> None:
    """SIGSTOP does what a debugger or a frozen machine does. A rank that continues later leaves too."""
    run = Faulty("stop", victim, world_size, run_config, tmp_path)
    try:
        assert run.codes_of_others() == {LOST}
        assert f"has not answered for {TIMEOUT} s" in run.errors()[0]
        assert f"Stack traces of the ranks that answered: {run.run / 'stacks'}" in run.errors()[0]
        run.check_the_rest()
        for rank in {*range(world_size)} - {victim}:
            assert "in all_reduce" in run.stacks(rank)
        os.kill(run.ranks[victim].pid, signal.SIGCONT)
        assert run.ranks[victim].wait(timeout=30) in (LOST, 1)
        assert len(run.errors()) == 1
    finally:
        run.end()


@pytest.mark.parametrize(("victim", "world_size"), [(0, 1), (1, 2)])
def test_a_main_thread_that_hangs_is_shown_where(run_config: dict, tmp_path: Path, victim: int, world_size: int) -> None:
    run = Faulty("sleep", victim, world_size, run_config, tmp_path)
    try:
        assert {rank.wait(timeout=60) for rank in run.ranks} == {LOST}
        assert f"no progress for {TIMEOUT} s of rank {victim}" in run.errors()[0]
        assert "while training, at fault_worker.py:" in run.errors()[0]
        assert ("the others wait for it" in run.errors()[0]) == (world_size > 1)
        assert "in hang_here" in run.stacks(victim)
        if world_size == 1:
            assert "--processes" not in run.errors()[0]
        else:
            run.check_the_rest()
            assert "in all_reduce" in run.stacks(0)
    finally:
        run.end()


@pytest.mark.parametrize("fault", ["sleep", "kill"])
def test_ranks_that_wait_in_deepspeeds_own_reduction_name_the_one_they_wait_for(run_config: dict, tmp_path: Path, fault: str) -> None:
    """In a fast run, the others wait in a backward pass, in a collective that DeepSpeed has begun."""
    run_config["training"] |= {"reduction": "fast"}
    run = Faulty(fault, 1, 2, run_config, tmp_path, FAULT_IN="forward")
    try:
        assert run.codes_of_others() == {LOST}
        assert ("died or was cut off" if fault == "kill" else f"no progress for {TIMEOUT} s of rank 1") in run.errors()[0]
        run.check_the_rest()
        if fault == "sleep":
            assert "in average_tensor" in run.stacks(0)
    finally:
        run.end()


def test_a_call_that_never_lets_another_thread_run(run_config: dict, tmp_path: Path) -> None:
    """The call holds Python's lock. That rank's watchdog cannot act, but the others can, and faulthandler's timer ends the process."""
    run = Faulty("hold", 1, 2, run_config, tmp_path)
    try:
        assert run.codes_of_others() == {LOST}
        assert "one call holds the whole process" in run.errors()[0]
        run.check_the_rest()
        assert run.ranks[1].wait(timeout=30) == 1
        assert "in train_batches" in run.ranks[1].output("stderr")
    finally:
        run.end()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, 128 + signal.SIGKILL), (signal.SIGSTOP, LOST)])
def test_our_launcher_says_it_once_and_leaves_no_process(run_config: dict, tmp_path: Path, number: signal.Signals, code: int) -> None:
    run_config["training"] |= {"epochs": 1000, "global_batch": 12, "micro_batch": 4}
    run_config["watchdog"] = {"timeout_s": TIMEOUT}
    run_config["checkpoint"]["background"] = False
    run = tmp_path / "run"
    launcher = Started(
        "launch", ["train", write_config(run_config, tmp_path), "--run-dir", run, "--processes", 3], {}, tmp_path / "launcher"
    )
    try:
        while not (run / "checkpoints" / "latest").exists():
            assert launcher.poll() is None, launcher.output("stderr")
            time.sleep(0.05)
        ranks = psutil.Process(launcher.pid).children()
        victim = max(ranks, key=lambda process: process.pid)  # started last
        victim.send_signal(number)
        start = time.monotonic()
        assert launcher.wait(timeout=60) == code
        assert time.monotonic() - start < 30
        assert not any(process.is_running() for process in ranks)
        errors = launcher.output("stderr")
        assert errors.count("error:") == 1, errors
        assert ("rank 2 was killed by SIGKILL" if number == signal.SIGKILL else f"rank 2 (process {victim.pid} on ") in errors
        assert "Traceback" not in errors
        latest = (run / "checkpoints" / "latest").read_text().strip()
        assert errors.endswith(f"The last whole checkpoint is {latest}; go on with: tdformer train {run} --processes 3\n")
    finally:
        launcher.kill()


def test_ranks_of_a_run_that_was_not_disturbed_say_nothing(run_config: dict, tmp_path: Path) -> None:
    run_config["training"]["epochs"] = 1
    environment = {"FAULT": "none", "FAULT_RANK": "-1"}
    arguments = ["train", write_config(run_config, tmp_path), "--run-dir", tmp_path / "run"]
    ranks: list[Started] = start_ranks(2, "tests.faults.fault_worker", arguments, tmp_path / "rank", environment)
    assert [rank.wait(timeout=60) for rank in ranks] == [0, 0]
    assert [rank.output("stderr") for rank in ranks] == ["", ""]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "checkpoints",
        "config.yaml",
        "last_holder",
        "last_saved",
        "learning_curve.png",
        "metrics.jsonl",
        "mlflow.json",
        "sessions",
    ]
