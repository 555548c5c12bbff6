"""`--processes` under srun, torchrun and MPI: where one process was started it starts the ranks, and where several were it is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tdformer.distributed.launch_environment import free_port
from tests.conftest import REPOSITORY, tdformer, write_config
from tests.distributed.starter import Started

pytestmark = pytest.mark.slow


def step(tasks: int, rank: int = 0) -> dict[str, str]:
    """What srun sets for a task of a step."""
    return {
        **{"SLURM_JOB_ID": "12", "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "n1", "SLURM_LOCALID": str(rank), "SLURM_PROCID": str(rank)},
        **{"SLURM_STEP_NUM_TASKS": str(tasks), "SLURM_NTASKS": str(tasks)},
    }


def world_size(run: Path) -> int:
    return json.loads((run / "sessions" / "0001.json").read_text())["world_size"]


@pytest.fixture
def config(run_config: dict, tmp_path: Path) -> Path:
    run_config["training"]["epochs"] = 1
    return write_config(run_config, tmp_path)


def test_one_task_of_srun_starts_processes(config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    trained = tdformer("train", config, "--run-dir", run, "--processes", 2, environment=step(1))
    assert trained.returncode == 0, trained.stderr
    assert "4 x 2 ranks x 1 accumulation" in trained.stdout
    assert world_size(run) == 2
    evaluated = tdformer("evaluate", run, "--processes", 2, "--json", environment=step(1))
    assert evaluated.returncode == 0, evaluated.stderr
    assert json.loads(evaluated.stdout)["samples"] == 11


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_several_tasks_of_srun_start_none(config: Path, tmp_path: Path, command: str) -> None:
    """All of them are refused, and one says it."""
    target = config if command == "train" else tmp_path
    ended = [tdformer(command, target, "--processes", 2, environment=step(2, rank)) for rank in (0, 1)]
    assert [each.returncode for each in ended] == [2, 2]
    sentence = (
        "error: srun has started 2 processes, and --processes 2 asks each of them to start 2 more; leave --processes out, or let srun "
    )
    assert [each.stderr for each in ended] == [f"{sentence}start one.\n", ""]
    assert not (tmp_path / "runs").exists()


def test_one_process_of_torchrun_starts_processes(config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "1",
        "-m",
        "launch",
        "train",
        str(config),
    ]
    ended = subprocess.run(
        [*torchrun, "--run-dir", str(run), "--processes", "2"], cwd=REPOSITORY, capture_output=True, text=True, timeout=240
    )
    assert ended.returncode == 0, ended.stderr
    assert world_size(run) == 2


@pytest.mark.parametrize(
    "prefix", [("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"), ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID")]
)
def test_ranks_of_mpi_are_one_run(config: Path, tmp_path: Path, prefix: tuple[str, str, str]) -> None:
    run, place = tmp_path / "run", {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [
        Started(
            "launch",
            ["train", config, "--run-dir", run],
            {**place, **dict(zip(prefix, (str(n), "2", str(n)), strict=True))},
            tmp_path / f"{n}",
        )
        for n in range(2)
    ]
    assert [(rank.wait(timeout=180), rank.output("stderr")) for rank in ranks] == [(0, "")] * 2
    assert world_size(run) == 2
    alone = tdformer("train", config, environment=dict(zip(prefix, ("0", "2", "0"), strict=True)))
    assert alone.returncode == 2
    assert "has started 2 processes, which do not know where to meet: set MASTER_ADDR" in alone.stderr
