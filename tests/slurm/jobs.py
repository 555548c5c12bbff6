"""Submits small runs as a user does, and compares what they left behind."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import yaml

from tests.conftest import REPOSITORY
from tests.faults.small_run import TENSORS, curve, tracked
from tests.slurm.cluster import Cluster

EPOCHS, STEPS_PER_EPOCH = 8, 6
LAST = f"step-{EPOCHS * STEPS_PER_EPOCH:08d}"


@dataclass(frozen=True)
class Jobs:
    """Runs on one cluster, all with the same data."""

    cluster: Cluster
    data: Path
    mlflow: Path
    folder: Path

    def config(self, name: str, **changes: Any) -> Path:
        """Write the configuration of a run with 48 steps and its own MLflow database. It trains for at least ten seconds."""
        folder = self.folder / name
        folder.mkdir()
        shutil.copy(self.mlflow, folder / "mlflow.db")
        config = {
            "name": name,
            "output": str(folder),
            "seed": 3,
            "data": {"train": str(self.data / "train"), "val": str(self.data / "val"), "image_size": 32, "workers": 0},
            "model": {
                "num_classes": 3,
                "time_steps": 2,
                "backbone": {"embed_dims": 32, "num_heads": 2, "depths": [1, 1, 1], "drop_path": 0.2},
                "feedback": {"init_std": 0.02},
            },
            "optimizer": {"base_lr": 0.01, "base_batch": 8, "warmup_epochs": 0.5},
            "training": {"epochs": EPOCHS, "global_batch": 4, "micro_batch": 1, "eval_batch": 6, "precision": "fp32", "log_every": 1},
            "checkpoint": {"every_steps": 2, "keep_last": 100},
            "tracking": {"uri": f"sqlite:///{folder}/mlflow.db", "system_metrics": False},
            **changes,
        }
        path = folder / "run.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    def tdformer(self, *arguments: object) -> CompletedProcess[str]:
        """Run the command on the login node."""
        command = [sys.executable, "-m", "launch", *map(str, arguments)]
        environment = {**self.cluster.environment(), "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)

    def submit(self, target: Path, *options: object) -> dict[str, Any]:
        """Submit a run on two nodes with one process each, and return the JSON that is printed."""
        done = self.tdformer("submit", target, "--nodes", 2, "--gpus-per-node", 0, "--json", *options)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


def wait_for_step(run: Path, step: int, seconds: float = 120) -> None:
    """Wait until a run has saved this step."""
    deadline = time.monotonic() + seconds
    while saved_step(run) < step:
        assert time.monotonic() < deadline, f"{run} is at step {saved_step(run)}, not {step}"
        time.sleep(0.05)


def saved_step(run: Path) -> int:
    latest = run / "checkpoints" / "latest"
    return int(latest.read_text().strip().removeprefix("step-")) if latest.exists() else 0


def difference(run: Path, reference: Path) -> str:
    """Return in what a finished run differs from the undisturbed one. Empty text means no difference."""
    checks = {
        "weights, statistics or moments": lambda path: [(path / "checkpoints" / LAST / name).read_bytes() for name in TENSORS],
        "metrics.jsonl": curve,
        "MLflow": tracked,
        "the best checkpoint": lambda path: (path / "checkpoints" / "best").read_text(),
    }
    return ", ".join(name for name, of in checks.items() if of(run) != of(reference))
