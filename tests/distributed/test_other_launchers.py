"""Two nodes without Slurm, each with one process: torchrun, and DeepSpeed's launcher with a hostfile. The same bits as by ours."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tdformer.distributed.launch_environment import free_port
from tests.conftest import REPOSITORY
from tests.distributed.starter import installed_command
from tests.runs import ReferenceRun, bits, write_config

pytestmark = pytest.mark.slow


def torchrun(node: int, port: int, folder: Path) -> list[str]:
    place = ["--nnodes=2", f"--node-rank={node}", "--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={port}"]
    signals = "--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGUSR1,SIGUSR2"
    return [sys.executable, "-m", "torch.distributed.run", *place, signals, "--no-python", "tdformer"]


def deepspeed(node: int, port: int, folder: Path) -> list[str]:
    hosts = folder / "hostfile"
    hosts.write_text("node1 slots=1\nnode2 slots=1\n")
    place = ["--hostfile", str(hosts), "--no_ssh", f"--node_rank={node}", "--master_addr=127.0.0.1", f"--master_port={port}"]
    return [sys.executable, "-m", "deepspeed.launcher.runner", *place, "--no_local_rank", "--no_python", "tdformer"]


def of_two_nodes(launcher: Callable[[int, int, Path], list[str]], folder: Path, *arguments: object) -> list[tuple[int, str]]:
    """Exit code and output of the launcher on each node."""
    port, environment = free_port(), {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    environment["PATH"] = f"{installed_command(folder).parent}:{environment['PATH']}"
    commands = [[*launcher(node, port, folder), *map(str, arguments)] for node in range(2)]
    nodes = [
        subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for command in commands
    ]
    try:
        outputs = [node.communicate(timeout=180)[0] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    return [(node.returncode, output) for node, output in zip(nodes, outputs, strict=True)]


@pytest.mark.parametrize("launcher", [torchrun, deepspeed])
def test_two_nodes(reference: ReferenceRun, tmp_path: Path, launcher: Callable[[int, int, Path], list[str]]) -> None:
    config = write_config(reference.config(tmp_path), tmp_path)
    ended = of_two_nodes(launcher, tmp_path, "train", config, "--run-dir", tmp_path / "run")
    assert [code for code, _ in ended] == [0, 0], ended
    assert ended[0][1].count("validation top-1") == 3  # two epochs and the summary, by one rank alone
    assert bits(tmp_path / "run") == bits(reference.run)
