"""Two nodes without Slurm, each with one process: torchrun, and DeepSpeed's launcher with a hostfile. The same bits as by ours."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tdformer.distributed.launch_environment import free_port
from tests.conftest import REPOSITORY, tdformer, write_config

pytestmark = pytest.mark.slow


def torchrun(node: int, port: int, folder: Path) -> list[str]:
    place = ["--nnodes=2", f"--node-rank={node}", "--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={port}"]
    return [sys.executable, "-m", "torch.distributed.run", *place, "--signals-to-handle=SIGTERM,SIGINT,SIGUSR1,SIGUSR2", "-m", "launch"]


def deepspeed(node: int, port: int, folder: Path) -> list[str]:
    hosts = folder / "hostfile"
    hosts.write_text("node1 slots=1\nnode2 slots=1\n")
    place = ["--hostfile", str(hosts), "--no_ssh", f"--node_rank={node}", "--master_addr=127.0.0.1", f"--master_port={port}"]
    return [sys.executable, "-m", "deepspeed.launcher.runner", *place, "--no_local_rank", "--module", "launch"]


def of_two_nodes(launcher: Callable[[int, int, Path], list[str]], folder: Path, *arguments: object) -> list[tuple[int, str]]:
    """Exit code and output of the launcher on each node."""
    port, environment = free_port(), {**os.environ, "OMP_NUM_THREADS": "1"}
    commands = [[*launcher(node, port, folder), *map(str, arguments)] for node in range(2)]
    nodes = [
        subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for command in commands
    ]
    try:
        outputs = [node.communicate(timeout=180)[0] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    return [(node.returncode, output) for node, output in zip(nodes, outputs, strict=True)]


def test_two_nodes(run_config: dict, tmp_path: Path) -> None:
    config = write_config(run_config, tmp_path)
    assert tdformer("train", config, "--run-dir", tmp_path / "own", "--processes", 2).returncode == 0
    for launcher in (torchrun, deepspeed):
        run = tmp_path / launcher.__name__
        ended = of_two_nodes(launcher, tmp_path, "train", config, "--run-dir", run)
        assert [code for code, _ in ended] == [0, 0], ended
        assert ended[0][1].count("validation top-1") == 3  # two epochs and the summary, by one rank alone
        weights = [path / "checkpoints" / "step-00000006" / "model.safetensors" for path in (run, tmp_path / "own")]
        assert weights[0].read_bytes() == weights[1].read_bytes()
