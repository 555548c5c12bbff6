"""Tests which code and which environment ranks get on a real Slurm, and how many processes a step of srun becomes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.slurm.cluster import Cluster
from tests.slurm.jobs import Jobs

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def test_ranks_run_the_snapshot_whatever_sbatch_exports_and_whatever_lies_in_the_folder(
    jobs: Jobs, cluster: Cluster, tmp_path: Path
) -> None:
    for name in ("launch.py", "random.py", "tdformer.py"):
        (tmp_path / name).write_text(f"open({str(tmp_path / 'imported')!r}, 'w').write(__name__)\n")
    mark = """echo 'print("the snapshot", flush=True)' >> "$RUN/code/tdformer/training/run.py" """
    settings = {"sbatch": ["--export=NONE"], "setup": [mark], "environment": {"SLURM_CONF": str(cluster.folder / "slurm.conf")}}
    (tmp_path / "cluster.yaml").write_text(json.dumps(settings))
    options = ["--nodes", "2", "--gpus-per-node", "0", "--cluster", "cluster.yaml", "--json", "training.epochs=1"]
    command = [sys.executable, "-P", "-m", "launch", "submit", str(jobs.config("export")), *options]
    environment = {**cluster.environment(), "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    submitted = json.loads(done.stdout)
    cluster.wait(submitted["job"], "COMPLETED")
    log = Path(submitted["log"]).read_text()
    assert log.count("the snapshot\n") == 2
    assert "4 = 1 x 2 ranks x 2 accumulation" in log
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize(("tasks", "code", "told"), [(1, 0, "4 = 1 x 2 ranks x 2 accumulation"), (2, 2, "srun has started 2 processes")])
def test_processes_of_a_step(jobs: Jobs, cluster: Cluster, tmp_path: Path, tasks: int, code: int, told: str) -> None:
    config = jobs.config(f"step-{tasks}")
    line = f"{sys.executable} -m launch train {config} training.epochs=1 --run-dir {tmp_path / 'run'} --processes 2"
    command = ["srun", "--nodes=1", f"--ntasks={tasks}", "bash", "-c", line]
    environment = {**cluster.environment(), "OMP_NUM_THREADS": "1", "PYTHONPATH": os.environ.get("PYTHONPATH", str(REPOSITORY))}
    done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=240)
    assert done.returncode == code, done.stderr
    assert told in done.stdout + done.stderr
    assert (done.stdout + done.stderr).count(told) == 1
