"""A run that was interrupted ends with the same bits as one that was not."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.conftest import REPOSITORY, run_id_of, write_config
from tests.distributed.starter import tdformer

LAST = "step-00000006"
FILES = ("model.safetensors", "optimizer.safetensors")


def equal_bits(one: Path, other: Path) -> bool:
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in FILES)


def losses(run: Path) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row]


def interrupted_copy(run: Path, copy: Path, step: int) -> Path:
    """The run directory as a crash some steps after the checkpoint of `step` would have left it."""
    shutil.copytree(run, copy)
    for checkpoint in (copy / "checkpoints").glob("step-*"):
        if int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)
    (copy / "checkpoints" / "latest").write_text(f"step-{step:08d}\n")
    (copy / "checkpoints" / "best").unlink()
    return copy


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [0, 2])
def test_resume_is_bit_identical_in_the_middle_of_an_epoch(run_config: dict, tmp_path: Path, zero_stage: int) -> None:
    """Drop path, mixup, cutmix and accumulation are on; two processes. (test_exactness resumes at stages 1 and 3.)"""
    run_config["training"]["zero_stage"] = zero_stage
    run_config["data"]["augment"] = {"mixup": 0.8, "cutmix": 1.0}
    whole = tmp_path / "whole"
    result = tdformer("train", write_config(run_config, tmp_path), "--run-dir", whole, "--processes", 2)
    assert result.returncode == 0, result.stderr
    resumed = interrupted_copy(whole, tmp_path / "resumed", step=2)
    result = tdformer("train", resumed, "--processes", 2)
    assert result.returncode == 0, result.stderr
    assert "resumed at step 2 of 6" in result.stdout
    assert equal_bits(whole / "checkpoints" / LAST, resumed / "checkpoints" / LAST)
    assert losses(whole) == losses(resumed)
    assert [step for step, _ in losses(resumed)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_resume_is_bit_identical_after_any_step(run_config: dict, tmp_path: Path) -> None:
    """The borders of epochs included; bf16, one process, no accumulation, the published augmentation and mixup."""
    run_config["data"]["augment"] = {"auto_augment": "rand-m9-mstd0.5-inc1", "erase": 0.25, "mixup": 0.2, "mix_probability": 0.5}
    run_config["training"] |= {"micro_batch": 8, "precision": "bf16"}
    whole = tmp_path / "whole"
    assert tdformer("train", write_config(run_config, tmp_path), "--run-dir", whole).returncode == 0
    for step in range(1, 6):
        resumed = interrupted_copy(whole, tmp_path / f"resumed{step}", step)
        result = tdformer("train", resumed)
        assert result.returncode == 0, result.stderr
        assert equal_bits(whole / "checkpoints" / LAST, resumed / "checkpoints" / LAST), step


@pytest.mark.slow
def test_a_stop_signal_saves_and_the_resume_ends_with_the_same_bits(run_config: dict, tmp_path: Path) -> None:
    """SIGTERM to the launcher, as from a scheduler: exit code 75, MLflow says KILLED, then FINISHED, and no point twice."""
    run_config["training"] |= {"epochs": 12}
    run_config["data"]["workers"] = 1
    run_config["checkpoint"] = {"keep_last": 3}
    config = write_config(run_config, tmp_path)
    stopped = tmp_path / "stopped"
    command = [sys.executable, "-m", "launch", "train", str(config), "--run-dir", str(stopped), "--processes", "2"]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        while not (stopped / "metrics.jsonl").exists() or len(losses(stopped)) < 4:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "state saved; go on with: tdformer train" in output
    client = MlflowClient(run_config["tracking"]["uri"])
    run_id = run_id_of(stopped)
    assert client.get_run(run_id).info.status == "KILLED"

    assert tdformer("train", stopped, "data.workers=0", "--processes", 2).returncode == 0
    whole = tmp_path / "whole"
    assert tdformer("train", config, "data.workers=0", "--run-dir", whole, "--processes", 2).returncode == 0
    assert equal_bits(whole / "checkpoints" / "step-00000036", stopped / "checkpoints" / "step-00000036")
    assert client.get_run(run_id).info.status == "FINISHED"
    for metric in ("train/loss", "val/top1"):
        steps = [point.step for point in client.get_metric_history(run_id, metric)]
        assert steps == sorted(set(steps))
    assert steps == [3 * epoch for epoch in range(1, 13)]
