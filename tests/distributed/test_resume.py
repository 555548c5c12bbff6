"""A run that was interrupted ends with the same bits as one that was not."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.conftest import run_id_of
from tests.distributed.starter import Started
from tests.runs import STEPS, STEPS_PER_EPOCH, ReferenceRun, bits, curve, cut_back, resume, train, write_config

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("zero_stage", [0, 2])
def test_resume_is_bit_identical_in_the_middle_of_an_epoch(reference: ReferenceRun, tmp_path: Path, zero_stage: int) -> None:
    """Drop path, augmentation, mixup, cutmix and accumulation are on; two ranks. (test_exactness resumes at stages 1 and 3.)"""
    resumed = reference.copy_cut_after(2, tmp_path)
    result = resume(resumed, f"training.zero_stage={zero_stage}", ranks=2)
    assert f"resumed at step 2 of {STEPS}" in result.stdout
    assert bits(resumed) == bits(reference.run)
    assert curve(resumed) == curve(reference.run)
    assert [row["step"] for row in curve(resumed) if "train/loss" in row] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_resume_is_bit_identical_after_any_step(run_config: dict, tmp_path: Path) -> None:
    """The borders of epochs included; bf16, one rank, no accumulation, the published augmentation and mixup."""
    run_config["data"]["augment"] = {"auto_augment": "rand-m9-mstd0.5-inc1", "erase": 0.25, "mixup": 0.2, "mix_probability": 0.5}
    run_config["training"] |= {"micro_batch": 8, "precision": "bf16"}
    whole = train(run_config, tmp_path)
    for step in range(1, 6):
        resumed = cut_back(whole, tmp_path / f"resumed{step}", step)
        resume(resumed)
        assert bits(resumed, 6) == bits(whole, 6), step


def test_mixing_ends_with_its_off_epoch(reference: ReferenceRun, tmp_path: Path) -> None:
    """The reference mixes in both epochs. A run that mixes in the first one alone is the same until its end, and not after it."""
    config = reference.config(tmp_path)
    config["data"]["augment"]["mix_off_epoch"] = 1
    first, second = STEPS_PER_EPOCH, STEPS_PER_EPOCH + 1
    run = train(config, tmp_path, ranks=2)
    assert bits(run, first) == bits(reference.run, first)
    assert losses(run)[:first] == losses(reference.run)[:first]
    assert all(ours != theirs for ours, theirs in zip(losses(run)[first:], losses(reference.run)[first:], strict=True))
    assert bits(run, second) != bits(reference.run, second)


def losses(run: Path) -> list[tuple[float, float]]:
    return [(row["step"], row["train/loss"]) for row in curve(run) if "train/loss" in row]


def test_a_stop_signal_saves_and_the_resume_ends_with_the_same_bits(run_config: dict, tmp_path: Path) -> None:
    """SIGTERM to the launcher, as from a scheduler: exit code 75, MLflow says KILLED, then FINISHED, and no point twice."""
    run_config["training"] |= {"epochs": 6}
    run_config["data"]["workers"] = 1
    run_config["checkpoint"] = {"keep_last": 3}
    config = write_config(run_config, tmp_path)
    stopped = tmp_path / "stopped"
    process = Started("launch", ["train", config, "--run-dir", stopped, "--processes", 2], {}, tmp_path / "out")
    while not (stopped / "metrics.jsonl").exists() or len(losses(stopped)) < 4:
        assert process.poll() is None, process.output("stderr")
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(timeout=60) == 75
    assert "state saved; go on with: tdformer train" in process.output()
    client = MlflowClient(run_config["tracking"]["uri"])
    run_id = run_id_of(stopped)
    assert client.get_run(run_id).info.status == "KILLED"

    resume(stopped, "data.workers=0", ranks=2)
    whole = train(run_config, tmp_path / "whole", "data.workers=0", ranks=2)
    assert bits(whole, 18) == bits(stopped, 18)
    assert client.get_run(run_id).info.status == "FINISHED"
    for metric in ("train/loss", "val/top1"):
        steps = [point.step for point in client.get_metric_history(run_id, metric)]
        assert steps == sorted(set(steps))
    assert steps == [3 * epoch for epoch in range(1, 7)]
