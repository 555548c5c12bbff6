"""Tests the ways to start a run: alone, with --processes, under torchrun. Tests also that a killed process ends it.

Every `tdformer` in these tests is a real process, unless `starter` starts it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from tests.conftest import REPOSITORY, run_id_of, write_config
from tests.distributed.starter import tdformer, tdformer_from_scratch

pytestmark = pytest.mark.slow


def test_train_evaluate_inspect(run_config: dict, tmp_path: Path) -> None:
    """A user trains, evaluates and inspects. On any number of processes, evaluation counts each of the 11 samples once."""
    run_config["training"] |= {"epochs": 1, "global_batch": 12, "micro_batch": 6}
    run_config["output"] = str(tmp_path / "runs")
    config = write_config(run_config, tmp_path)
    result = tdformer_from_scratch("train", config, "--processes", 2)
    assert result.returncode == 0, result.stderr
    assert "2 steps per epoch, 2 images (others in each epoch) are left out" in result.stdout
    run = tmp_path / "runs" / "tiny-001"
    assert all(name in result.stdout for name in ("validation top-1", "images/s", "parameters", str(run), "learning curve", "MLflow"))
    assert (run / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    assert tdformer("train", config).returncode == 0
    assert (tmp_path / "runs" / "tiny-002" / "checkpoints" / "latest").exists(), "a second run is a new one"

    evaluate = ("evaluate", run, "--json", "--processes")
    results = [json.loads(start(*evaluate, n).stdout) for n, start in ((1, tdformer_from_scratch), (2, tdformer), (3, tdformer))]
    assert {result["samples"] for result in results} == {11}
    assert len({result["top1"] for result in results}) == 1
    best = json.loads((run / "checkpoints" / "step-00000002" / "state.json").read_text())
    assert results[0]["top1"] == best["metrics"]["top1"] == best["best_top1"]

    inspected = json.loads(tdformer("checkpoint", "inspect", run, "--json").stdout)
    assert (inspected["step"], inspected["world_size"], inspected["evaluated_epochs"]) == (2, 2, 1)

    client = MlflowClient(run_config["tracking"]["uri"])
    logged = client.get_run(run_id_of(run))
    assert logged.info.status == "FINISHED"
    assert logged.data.params["training.global_batch"] == "12"
    assert {
        "train/loss",
        "train/lr",
        "train/images_per_s",
        "train/gradient_norm",
        "val/top1",
        "val/top1_segment1",
    } <= logged.data.metrics.keys()
    assert {file.path for file in client.list_artifacts(logged.info.run_id)} == {"config.yaml", "learning_curve.png"}


def test_under_torchrun(run_config: dict, tmp_path: Path) -> None:
    run_config["training"]["epochs"] = 1
    config, run = write_config(run_config, tmp_path), tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0", "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", "localhost:0", "-m", "launch", "train", str(config), "--run-dir", str(run)]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=240, check=False)
    assert result.returncode == 0, result.stderr
    assert json.loads((run / "checkpoints" / "step-00000003" / "state.json").read_text())["world_size"] == 2


def test_system_metrics_reach_mlflow(run_config: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_config["training"]["epochs"] = 2
    run_config["tracking"]["system_metrics"] = True
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING", "1")
    result = tdformer("train", write_config(run_config, tmp_path), "--run-dir", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    logged = MlflowClient(run_config["tracking"]["uri"]).get_run(run_id_of(tmp_path / "run"))
    assert "system/cpu_utilization_percentage" in logged.data.metrics


def test_a_killed_process_ends_the_run_and_leaves_nothing_behind(run_config: dict, tmp_path: Path) -> None:
    """Rank 0 gets SIGKILL, as from the kernel when memory runs out. The others end, MLflow says FAILED, and no process is left.

    test_hangs kills other ranks.
    """
    run_config["training"]["epochs"] = 1000
    run_config["data"]["workers"] = 1
    run = tmp_path / "run"
    command = [sys.executable, "-m", "launch", "train", str(write_config(run_config, tmp_path)), "--run-dir", str(run), "--processes", "2"]
    with subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        while not (run / "checkpoints" / "latest").exists():
            assert process.poll() is None
            time.sleep(0.05)
        family = psutil.Process(process.pid).children(recursive=True)
        ranks = [child for child in family if child.environ().get("RANK") == "0" and child.ppid() == process.pid]
        os.kill(ranks[0].pid, signal.SIGKILL)
        _, errors = process.communicate(timeout=240)  # the launcher imports MLflow to say FAILED
    assert process.returncode == 128 + signal.SIGKILL
    assert "error: rank 0 was killed by SIGKILL" in errors
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []
    run_id = run_id_of(run)
    assert MlflowClient(run_config["tracking"]["uri"]).get_run(run_id).info.status == "FAILED"
