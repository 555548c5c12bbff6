"""Starts a real Slurm of two nodes on this machine. Its munge, ports, folders and configuration are its own."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CompletedProcess

import psutil

from tdformer.distributed.launch_environment import free_port

HOST = os.uname().nodename
NODES = (HOST, f"{HOST}-second")
"""The names of the two nodes. Ranks connect to the first one, so the network must know its name."""
DAEMONS = "/usr/sbin"
"""The folder of the daemons on Debian. It may be missing in PATH."""
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
MpiDefault=none
SchedulerParameters=sched_interval=2,batch_sched_delay=1,defer_batch=0
SlurmctldParameters=idle_on_node_suspend
MinJobAge=300
KillWait=10
InactiveLimit=0
SlurmdTimeout=15
SlurmctldTimeout=30
MessageTimeout=30
JobRequeue=1
EnforcePartLimits=ALL
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/spool.%n
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdLogFile={folder}/slurmd.%n.log
JobCompType=jobcomp/none
AccountingStorageType=accounting_storage/none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=60 DefaultTime=20 OverSubscribe=NO State=UP PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=60 DefaultTime=20 State=UP PriorityTier=2 PreemptMode=OFF
"""


@dataclass
class Cluster:
    """A Slurm of two nodes, and its daemons."""

    folder: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    # --- up and down ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start all daemons, and wait until both nodes are idle. Raises RuntimeError with the logs if they do not come up."""
        for name in ("state", *(f"spool.{node}" for node in NODES)):
            (self.folder / name).mkdir(parents=True)
        self.folder.chmod(0o755)  # munge requires that other users can reach its socket.
        nodes = (
            f"NodeName={node} NodeHostname={HOST} NodeAddr=127.0.0.1 Port={free_port()} CPUs=2 RealMemory=4000 Gres=gpu:1" for node in NODES
        )
        (self.folder / "slurm.conf").write_text(
            CONF.format(folder=self.folder, host=HOST, port=free_port(), nodes="\n".join(nodes), user=getpass.getuser())
        )
        (self.folder / "gres.conf").write_text("Name=gpu File=/dev/null\n")
        (self.folder / "munge.key").write_bytes(os.urandom(128))
        (self.folder / "munge.key").chmod(0o400)
        files = {name: f"--{name}-file={self.folder}/munge.{name.split('-')[0]}" for name in ("pid", "log", "seed", "key")}
        self._spawn("munged", "munged", "--foreground", "--force", f"--socket={self.folder}/munge.socket", *files.values())
        self._until((self.folder / "munge.socket").exists, 10, "munged")
        self._spawn("slurmctld", "slurmctld", "-D")
        for node in NODES:
            self.start_node(node)
        self._until(lambda: self.states() == dict.fromkeys(NODES, "idle"), 20, "the nodes")

    def start_node(self, node: str) -> None:
        self._spawn(node, "slurmd", "-D", "-N", node)

    def stop(self) -> None:
        self.run("scancel", "--user", getpass.getuser(), "--signal=KILL", "--full")
        for process in reversed(self.processes.values()):
            process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for process in self._started(f"SLURM_CONF={self.folder}/slurm.conf"):
            process.kill()  # Processes of a step outlive slurmd.

    def _started(self, mark: str) -> list[psutil.Process]:
        """Return the processes with this variable, and their slurmstepd parents, whose variables cannot be read."""
        marked = [process for process in psutil.process_iter() if mark in _environment(process)]
        parents = {parent.pid: parent for process in marked if (parent := process.parent()) and parent.name().startswith("slurmstepd")}
        return [*parents.values(), *marked]

    def _spawn(self, name: str, *command: str) -> None:
        environment = self.environment()
        program = shutil.which(command[0], path=environment["PATH"])
        assert program, f"{command[0]} is missing: apt-get install slurm-wlm munge"
        with (self.folder / f"{name}.stdout").open("ab") as out:
            self.processes[name] = subprocess.Popen(
                [program, *command[1:]], env=environment, stdout=out, stderr=out, start_new_session=True
            )

    def _until(self, is_so: Callable[[], bool], seconds: float, what: str) -> None:
        deadline = time.monotonic() + seconds
        while not is_so():
            if time.monotonic() > deadline:
                logs = "\n".join(path.read_text(errors="replace")[-2000:] for path in sorted(self.folder.glob("*.log")))
                out = "\n".join(path.read_text(errors="replace")[-2000:] for path in sorted(self.folder.glob("*.stdout")))
                raise RuntimeError(f"{what} did not come up within {seconds:g} s\n{logs}\n{out}")
            time.sleep(0.2)

    # --- commands of a user -----------------------------------------------------------------------------------------------

    def environment(self) -> dict[str, str]:
        """Return the environment of a shell on the login node."""
        outside = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        return {**outside, "SLURM_CONF": f"{self.folder}/slurm.conf", "PATH": f"{outside['PATH']}:{DAEMONS}"}

    def run(self, *command: str) -> CompletedProcess[str]:
        return subprocess.run(command, env=self.environment(), capture_output=True, text=True, timeout=300)

    def states(self) -> dict[str, str]:
        return dict(line.split() for line in self.run("sinfo", "-h", "-N", "-p", "main", "-o", "%N %T").stdout.splitlines())

    def job(self, number: str) -> Mapping[str, str]:
        """Return the fields of a job that scontrol shows."""
        shown = self.run("scontrol", "show", "job", "--oneliner", number).stdout
        return dict(item.partition("=")[::2] for item in shown.split() if "=" in item)

    def wait(self, number: str, state: str) -> None:
        """Wait until a job is in this state."""
        self.wait_until(lambda: self.job(number).get("JobState") == state, lambda: f"job {number} is not {state}: {self.job(number)}")

    def wait_for_restart(self, number: str, restart: int) -> None:
        """Wait until a job was requeued this many times, and runs again."""
        self.wait_until(lambda: self._restarts(number) == (str(restart), "RUNNING"), lambda: f"no restart {restart}: {self.job(number)}")

    def _restarts(self, number: str) -> tuple[str | None, str | None]:
        job = self.job(number)
        return job.get("Restarts"), job.get("JobState")

    def wait_until(self, is_so: Callable[[], bool], otherwise: Callable[[], str] = str, seconds: float = 300) -> None:
        deadline = time.monotonic() + seconds
        while not is_so():
            assert time.monotonic() < deadline, otherwise()
            time.sleep(0.2)

    def kill_node(self, node: str) -> None:
        """Kill slurmd and everything that it started at once, as a power failure does."""
        self.processes.pop(node).kill()
        for process in self._started(f"SLURMD_NODENAME={node}"):
            process.kill()

    def tasks(self, node: str) -> list[psutil.Process]:
        """Return the processes of the ranks on a node."""
        environments = {process: _environment(process) for process in psutil.process_iter()}
        return [
            process
            for process, environment in environments.items()
            if f"SLURMD_NODENAME={node}" in environment and any(item.startswith("SLURM_PROCID=") for item in environment)
        ]


def _environment(process: psutil.Process) -> list[str]:
    try:
        return [f"{name}={value}" for name, value in process.environ().items()]
    except psutil.Error:
        return []
