"""Submits small runs as a user does, and compares what they left behind."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from tests.conftest import REPOSITORY
from tests.runs import tiny_config, write_config
from tests.slurm.cluster import Cluster

EPOCHS, STEPS_PER_EPOCH = 8, 6
LAST_STEP = EPOCHS * STEPS_PER_EPOCH


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
        training = {"epochs": EPOCHS, "global_batch": 4, "micro_batch": 1, "eval_batch": 6, "clip_grad": None}
        config = tiny_config(self.data, folder, self.mlflow, **training)
        config["checkpoint"]["every_steps"] = 2
        return write_config({**config, "name": name, "output": str(folder), **changes}, folder)

    def tdformer(self, *arguments: object) -> CompletedProcess[str]:
        """Run the command on the login node."""
        command = [sys.executable, "-m", "launch", *map(str, arguments)]
        environment = {**self.cluster.environment(), "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)

    def submit(self, target: Path, *options: object, nodes: int = 2) -> dict[str, Any]:
        """Submit a run with one process on each node, and return the JSON that is printed."""
        done = self.tdformer("submit", target, "--nodes", nodes, "--gpus-per-node", 0, "--json", *options)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


def wait_for_step(run: Path, step: int, seconds: float = 300) -> None:
    """Wait until a run has saved this step."""
    deadline = time.monotonic() + seconds
    while saved_step(run) < step:
        assert time.monotonic() < deadline, f"{run} is at step {saved_step(run)}, not {step}"
        time.sleep(0.05)


def saved_step(run: Path) -> int:
    latest = run / "checkpoints" / "latest"
    return int(latest.read_text().strip().removeprefix("step-")) if latest.exists() else 0
