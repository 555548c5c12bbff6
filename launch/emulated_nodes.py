"""Emulates nodes on one machine: network namespaces of Linux, joined by a bridge, each with a link of limited speed. Needs root."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from data_pipelines.errors import UserError

EMULATED = "TDFORMER_EMULATED_NODES"
"""The variable that tells a process that its node is an emulated one."""
INTERFACE = "eth0"
"""The name of every node's network interface."""
SUBNET = "10.77.0"
PORT = 29555
"""Nodes have networks of their own, so the port is free."""


@dataclass(frozen=True)
class EmulatedNode:
    """One network namespace."""

    namespace: str
    address: str

    def command(self, command: Sequence[str]) -> list[str]:
        """Return a command that runs another one on this node."""
        return ["ip", "netns", "exec", self.namespace, *command]


def environment_of(rank: int, world_size: int) -> dict[str, str]:
    """Return the variables of the process with this rank, if there is one process on each node."""
    return {
        EMULATED: "1",
        "RANK": str(rank),
        "LOCAL_RANK": "0",
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": f"{SUBNET}.1",
        "MASTER_PORT": str(PORT),
        "GLOO_SOCKET_IFNAME": INTERFACE,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }


def check_possible() -> None:
    """Raise UserError unless this machine can emulate nodes."""
    missing = [name for name in ("ip", "tc") if shutil.which(name) is None]
    if missing:
        raise UserError(f"emulated nodes need the programs ip and tc, and {missing[0]} is missing: install the package iproute2.")
    if os.geteuid():
        raise UserError("emulated nodes need root, to make network namespaces; start this as root, or under torchrun on real nodes.")


@contextmanager
def emulated_nodes(count: int, mbit_per_s: float) -> Iterator[list[EmulatedNode]]:
    """Make nodes, and remove them at the end. mbit_per_s: what each node can send. Raises UserError if the machine refuses."""
    check_possible()
    prefix = f"td{os.getpid()}"
    bridge = f"{prefix}b"
    nodes = [EmulatedNode(f"{prefix}n{number}", f"{SUBNET}.{number}") for number in range(1, count + 1)]
    try:
        _run("ip", "netns", "add", bridge)
        _run("ip", "-n", bridge, "link", "add", "br0", "type", "bridge")
        _run("ip", "-n", bridge, "link", "set", "br0", "up")
        for number, node in enumerate(nodes):
            _connect(node, bridge, f"v{number}", mbit_per_s)
        yield nodes
    finally:
        for namespace in [*(node.namespace for node in nodes), bridge]:
            with suppress(UserError):  # it was not made
                _run("ip", "netns", "del", namespace)


def start(node: EmulatedNode, command: Sequence[str], environment: Mapping[str, str], stdout: int | None = None) -> subprocess.Popen[str]:
    """Start a command on a node."""
    return subprocess.Popen(node.command(command), env={**os.environ, **environment}, stdout=stdout, text=True)


def _connect(node: EmulatedNode, bridge: str, cable: str, mbit_per_s: float) -> None:
    inside = ("ip", "-n", node.namespace)
    _run("ip", "netns", "add", node.namespace)
    _run("ip", "-n", bridge, "link", "add", cable, "type", "veth", "peer", "name", INTERFACE, "netns", node.namespace)
    _run("ip", "-n", bridge, "link", "set", cable, "master", "br0", "up")
    _run(*inside, "addr", "add", f"{node.address}/24", "dev", INTERFACE)
    _run(*inside, "link", "set", INTERFACE, "up")
    _run(*inside, "link", "set", "lo", "up")
    limit = ("tbf", "rate", f"{mbit_per_s:g}mbit", "burst", "256kb", "latency", "200ms")
    _run(*node.command(["tc", "qdisc", "add", "dev", INTERFACE, "root", *limit]))


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip()
        raise UserError(f"emulated nodes: {' '.join(command)} failed ({said}); this needs root, and a kernel with network namespaces.")
