"""What becomes of a command's output never decides what becomes of the command. Real pipes, disks and terminals; see test_streams too."""

from __future__ import annotations

import os
import pty
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import psutil
import pytest

from tdformer.rundir import sessions
from tdformer.rundir.run_dir import RunDir
from tests.conftest import REPOSITORY, write_config
from tests.unit.generated_runs import write_run

pytestmark = pytest.mark.slow

TDFORMER = f"{shlex.quote(sys.executable)} -m launch"


def shell(line: str, **environment: str) -> CompletedProcess[str]:
    """Give a line to bash, which prints the exit code of its first command at the end of stderr."""
    whole = f"{line}\necho ${{PIPESTATUS[0]}} >&2"
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        ["bash", "-c", whole], cwd=REPOSITORY, env=variables, capture_output=True, text=True, errors="replace", timeout=240
    )


def status(run: Path) -> str:
    last, _ = sessions.read_all(RunDir(run))
    return last[-1].status


@pytest.mark.parametrize(
    ("redirection", "told"),
    [
        ("--processes 2 2>&1 | head -1", ""),
        ("> /dev/full", "warning: standard output cannot be written (No space left on device); the run goes on without it.\n"),
        (">&- 2>&- <&-", ""),
    ],
)
def test_a_run_is_finished_whoever_reads(run_config: dict, tmp_path: Path, redirection: str, told: str) -> None:
    run = tmp_path / "run"
    ended = shell(f"{TDFORMER} train {write_config(run_config, tmp_path)} --run-dir {run} {redirection}")
    assert ended.stderr == f"{told}0\n"
    assert status(run) == "finished"
    assert (run / "checkpoints" / "latest").read_text() == "step-00000006\n"


def test_a_run_in_a_terminal_of_few_characters(run_config: dict, tmp_path: Path) -> None:
    """The name of the run directory has a character that the terminal lacks."""
    run = tmp_path / "run→"
    ended = shell(f"{TDFORMER} train {write_config(run_config, tmp_path)} --run-dir {run}", PYTHONIOENCODING="latin-1")
    assert ended.stderr == "0\n"
    assert "run\\u2192" in ended.stdout
    assert status(run) == "finished"


@pytest.mark.parametrize("command", ["--help", "train --help", "runs list {runs}", "runs show {runs}/run-001", "models"])
def test_a_command_whose_reader_leaves_ends_quietly(tmp_path: Path, command: str) -> None:
    for number in range(1, 4):
        write_run(tmp_path / f"run-00{number}")
    ended = shell(f"{TDFORMER} {command.format(runs=tmp_path)} | head -1")
    assert ended.stderr == "0\n"
    assert len(ended.stdout.splitlines()) == 1


@pytest.mark.parametrize("command", ["--help", "data prepare --help", "runs show {runs}/run-001", "runs compare {runs}"])
def test_other_commands_in_a_terminal_of_few_characters(tmp_path: Path, command: str) -> None:
    for number in range(1, 3):
        write_run(tmp_path / f"run-00{number}")
    for encoding in ("ascii", "latin-1"):
        ended = shell(f"{TDFORMER} {command.format(runs=tmp_path)}", PYTHONIOENCODING=encoding)
        assert ended.stderr == "0\n"
        assert ended.stdout


def test_a_result_that_is_lost_is_an_error(tmp_path: Path) -> None:
    ended = shell(f"{TDFORMER} runs list {write_run(tmp_path / 'run-001').parent} > /dev/full")
    sentence = "error: the output cannot be written (No space left on device); give the command again where there is room for it."
    assert ended.stderr == f"{sentence}\n2\n"


# --- a terminal that is lost ---------------------------------------------------------------------------------


def heed_hangups() -> None:
    """Tests may themselves run under nohup, and what a process ignores, its children ignore too."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def start(
    arguments: list[object], prefix: list[str], preexec: Callable[[], object] = heed_hangups, **options: int
) -> subprocess.Popen[bytes]:
    command = [*prefix, sys.executable, "-m", "launch", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=REPOSITORY, env=environment, preexec_fn=preexec, **options)


def wait_for_step(run: Path, process: subprocess.Popen[bytes], descriptor: int) -> None:
    """Wait until a run has saved a state. Read its terminal meanwhile."""
    while not (run / "checkpoints" / "latest").exists():
        assert process.poll() is None
        os.read(descriptor, 4096)


def test_a_run_whose_terminal_is_lost_saves_and_stops(run_config: dict, tmp_path: Path) -> None:
    """A connection breaks: the system takes the terminal away and sends SIGHUP to everyone there."""
    run_config["training"]["epochs"] = 1000
    run, (master, slave) = tmp_path / "run", pty.openpty()

    def take_terminal() -> None:
        heed_hangups()
        os.setsid()
        os.close(os.open(os.ttyname(slave), os.O_RDWR))  # the first terminal that the leader of a session opens becomes its own

    arguments = ["train", write_config(run_config, tmp_path), "--run-dir", run, "--processes", 2]
    process = start(arguments, [], take_terminal, stdin=slave, stdout=slave, stderr=slave)
    family = psutil.Process(process.pid)
    os.close(slave)
    wait_for_step(run, process, master)
    ranks = family.children()
    os.close(master)
    assert process.wait(120) == 75
    assert status(run) == "stopped"
    assert psutil.wait_procs(ranks, timeout=20)[1] == []


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_under_nohup_goes_on_without_its_terminal(run_config: dict, tmp_path: Path, processes: int) -> None:
    run_config["training"]["epochs"] = 4
    run = tmp_path / "run"
    arguments = ["train", write_config(run_config, tmp_path), "--run-dir", run, "--processes", processes]
    process = start(arguments, ["nohup"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (run / "checkpoints" / "latest").exists():
        assert process.poll() is None
        time.sleep(0.02)
    for member in (psutil.Process(process.pid), *psutil.Process(process.pid).children()):
        member.send_signal(signal.SIGHUP)
    assert process.wait(120) == 0
    assert status(run) == "finished"


def test_a_hangup_of_one_rank_stops_all(run_config: dict, tmp_path: Path) -> None:
    run_config["training"]["epochs"] = 1000
    run = tmp_path / "run"
    arguments = ["train", write_config(run_config, tmp_path), "--run-dir", run, "--processes", 2]
    process = start(arguments, [], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (run / "checkpoints" / "latest").exists():
        assert process.poll() is None
        time.sleep(0.02)
    psutil.Process(process.pid).children()[1].send_signal(signal.SIGHUP)
    assert process.wait(120) == 75
    assert status(run) == "stopped"
