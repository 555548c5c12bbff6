"""How tests start commands: forked from a server that has imported everything, in a tenth of a second instead of seven seconds.

Each command, and each rank that it starts, is a process of its own, with its own environment, output and exit code, and runs
`launch.cli.main`. It only skips the start of an interpreter and the imports. Tests of the start itself (test_commands) and tests that
set what an import reads (test_golden_curve, test_no_compiler) use `tdformer_from_scratch`. On a machine with an NVIDIA GPU the server
imports nothing before a fork, because CUDA does not live through one.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace
from typing import IO, Any, Never

from tdformer import garbage
from tdformer.distributed.launch_environment import free_port
from tests.distributed.spare import fork_spare, leave_spare

REPOSITORY = Path(__file__).parent.parent.parent


# --- in the test ---------------------------------------------------------------------------------------------


class Started:
    """A process that does what `python -m MODULE ARGUMENTS` would do. Its output goes to `out`.stdout and `out`.stderr."""

    def __init__(self, module: str, arguments: Sequence[object], environment: Mapping[str, str], out: Path) -> None:
        self.out = out
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        self.pid: int = _ask({"module": module, "arguments": [*map(str, arguments)], "environment": environment, "out": str(out)})

    def poll(self) -> int | None:
        return _ask({"poll": self.pid})

    def wait(self, timeout: float) -> int:
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                self.kill()
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(0.02)
        return code

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def halt(self) -> None:
        """Stop the process as a debugger does, and wait until each of its threads has stopped."""
        os.kill(self.pid, signal.SIGSTOP)
        while not all("State:\tT" in status.read_text() for status in Path(f"/proc/{self.pid}/task").glob("*/status")):
            time.sleep(0.002)

    def output(self, stream: str = "stdout") -> str:
        return Path(f"{self.out}.{stream}").read_text()


def tdformer(*arguments: object, timeout: float = 240, environment: Mapping[str, str] | None = None) -> CompletedProcess[str]:
    """Run the command in a forked process. A hang fails the test."""
    with tempfile.TemporaryDirectory() as folder:
        command = Started("launch", arguments, environment or {}, Path(folder, "command"))
        code = command.wait(timeout)
        return CompletedProcess([*arguments], code, command.output(), command.output("stderr"))


def tdformer_from_scratch(*arguments: object, timeout: float = 240, environment: Mapping[str, str] | None = None) -> CompletedProcess[str]:
    """Run the command as a user does, in a new interpreter that imports what it needs. A hang fails the test."""
    return subprocess.run(
        [sys.executable, "-m", "launch", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
    )


def installed_command(folder: Path) -> Path:
    """Write the command `tdformer` into `folder`/bin, as an installation of this checkout writes it. Return its path."""
    script = folder / "bin" / "tdformer"
    script.parent.mkdir()
    script.write_text(f'#!{sys.executable}\nfrom launch.__main__ import main\nif __name__ == "__main__":\n    main()\n')
    script.chmod(0o755)
    return script


def start_ranks(world_size: int, module: str, arguments: Sequence[object], out: Path, environment: Mapping[str, str]) -> list[Started]:
    """Start all processes of a run, as torchrun does."""
    common = {**environment, "WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    places = [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world_size)]
    return [Started(module, arguments, place, Path(f"{out}-{rank}")) for rank, place in enumerate(places)]


@cache
def _server() -> subprocess.Popen[str]:
    """Start the server, once in each test process. It ends when that process does, which closes its standard input."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.distributed.starter"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def _ask(request: dict[str, Any]) -> Any:
    server = _server()
    assert server.stdin
    assert server.stdout
    server.stdin.write(json.dumps(request) + "\n")
    answer = server.stdout.readline()
    assert answer, "the server of commands has ended"
    return json.loads(answer)


# --- in the server -------------------------------------------------------------------------------------------


class Forked:
    """A child of this process that runs a main function. It has those parts of Popen that launch.local_processes uses."""

    def __init__(
        self,
        command: Sequence[str],
        env: Mapping[str, str] | None = None,
        preexec_fn: Callable[[], None] = lambda: None,
        stdout: IO[Any] | None = None,
    ) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        self.returncode: int | None = None
        self.pid = os.fork()
        if not self.pid:
            preexec_fn()
            if stdout is not None:
                os.dup2(stdout.fileno(), sys.__stdout__.fileno())
            _become(command, dict(os.environ) if env is None else env)

    def poll(self) -> int | None:
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if ended else None
        return self.returncode

    def wait(self) -> int:
        while (code := self.poll()) is None:
            time.sleep(0.02)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _become(command: Sequence[str], environment: Mapping[str, str]) -> Never:
    """Do what the command would do, and end the process. A module is run by its function main."""
    _, _, module, *arguments = command
    code = 1
    try:
        os.environ.clear()
        os.environ.update(environment)
        tempfile.tempdir = None  # TMPDIR may be another one here
        sys.argv = [module, *arguments]
        leave_spare()
        if _may_start_helper(arguments, environment):
            fork_spare()
        importlib.import_module("launch.cli" if module == "launch" else module).main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _may_start_helper(arguments: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Tell whether a command may start loaders or a pool. Others need no spare, whose fork takes as long as their own.

    A launcher has none. Its only children are the ranks, among which tests choose.
    """
    if "--processes" in arguments and "RANK" not in environment:
        return arguments[0] == "data"
    paths = [Path(argument) / "config.yaml" if Path(argument).is_dir() else Path(argument) for argument in arguments]
    texts = [*arguments, *(path.read_text(errors="replace") for path in paths if path.suffix == ".yaml" and path.is_file())]
    return any(re.search(r"\bworkers(: |=)[1-9]", text) for text in texts)


def _redirect(out: str) -> None:
    """Give the child its own input and output. It must not read or write what the server and the test say to each other."""
    for number, path in enumerate(("/dev/null", f"{out}.stdout", f"{out}.stderr")):
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)


def _import_everything() -> None:
    """Import what a rank imports on a CPU. A fork copies locks, so no thread may run, but pyarrow's jemalloc's, which knows forks."""
    os.environ["DS_ACCELERATOR"] = "cpu"

    from launch import local_processes
    from tdformer.distributed import context
    from tdformer.tracking.client import import_mlflow
    from tdformer.training.deepspeed_insides import import_deepspeed

    garbage.search_rarely()
    import_deepspeed()
    importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")  # by deepspeed.initialize, and with it half of torch's compiler
    import_mlflow()
    importlib.import_module("mlflow.store.tracking.sqlalchemy_store")
    importlib.import_module("matplotlib.pyplot")
    local_processes.subprocess = SimpleNamespace(Popen=Forked)  # type: ignore[assignment]
    context.SECONDS_FOR_FIRST_TO_SPEAK = 0.2  # it matters to torchrun and srun alone, and all bad input would wait for it
    threads = {task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm")}
    assert threads <= {Path(sys.executable).name, "python", "jemalloc_bg_thd"}, threads
    assert threading.active_count() == 1
    garbage.search_among_new_objects()  # children then share the memory of the others


def serve() -> None:
    if not Path("/dev/nvidiactl").exists():
        _import_everything()
    children: dict[int, Forked] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            answer = children[request["poll"]].poll()
        else:
            command = [sys.executable, "-m", request["module"], *request["arguments"]]
            child = Forked(command, request["environment"], partial(_redirect, request["out"]))
            children[child.pid], answer = child, child.pid
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
