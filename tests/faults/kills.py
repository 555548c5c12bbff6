"""SIGKILL: of whom, and when."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import psutil

from tests.distributed.starter import Started

Victim = Literal["one rank", "all ranks", "the launcher", "the node"]
Moment = Literal["at any time", "while saving", "before a file operation"]
KINDS = [(victim, moment) for victim in get_args(Victim) for moment in get_args(Moment)]

MAIN = "tests.faults.kills"
LAST_OPERATION = 70
"""Changes of files that rank 0 makes in a run directory in half of the small run: half of the kills come before that."""
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.truncate"}


@dataclass(frozen=True)
class Kill:
    victim: Victim
    moment: Moment
    rank: int
    """This rank is killed if the victim is "one rank"."""
    seconds: float
    """at any time: after the start. while saving: after its first file is seen."""
    number: int
    """while saving: in which save. before a file operation: which of rank 0's."""

    def __str__(self) -> str:
        return f"{self.victim} {self.moment}"

    def environment(self, run: Path) -> dict[str, str]:
        if self.moment != "before a file operation":
            return {}
        return {"KILL_VICTIM": self.victim, "KILL_RANK": str(self.rank), "KILL_NUMBER": str(self.number), "KILL_RUN": str(run)}

    def strike_from_outside(self, launcher: Started, run: Path) -> None:
        """Wait for the moment, and kill; nothing if the run ends before."""
        seen: set[str] = set()
        start = time.monotonic()
        while launcher.poll() is None:
            if self.moment == "at any time" and time.monotonic() - start > self.seconds:
                return strike(self.victim, self.rank, launcher.pid)
            if self.moment == "while saving":
                seen |= {path.name for path in run.glob("checkpoints/.partial-step-*")}
                if len(seen) >= self.number:
                    time.sleep(self.seconds)
                    return strike(self.victim, self.rank, launcher.pid)
            time.sleep(0.001 if self.moment == "while saving" else 0.02)


def choose(draw: random.Random, kind: tuple[Victim, Moment], world_size: int, run_seconds: float) -> Kill:
    victim, moment = kind
    seconds = draw.uniform(0, run_seconds) if moment == "at any time" else draw.uniform(0, 0.02)
    number = draw.randint(1, 5) if moment == "while saving" else draw.randint(1, LAST_OPERATION)
    return Kill(victim, moment, draw.randrange(world_size), seconds, number)


def strike(victim: Victim, rank: int, launcher: int) -> None:
    """SIGKILL, to this process last if it is among them."""
    try:
        ranks = sorted(child.pid for child in psutil.Process(launcher).children())  # started in this order
    except psutil.NoSuchProcess:
        return
    victims = {"one rank": ranks[rank : rank + 1], "all ranks": ranks, "the launcher": [launcher], "the node": [launcher, *ranks]}[victim]
    for pid in sorted(victims, key=lambda pid: pid == os.getpid()):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def main() -> None:
    """`tdformer`, whose rank 0 kills KILL_VICTIM before it changes a file in KILL_RUN for the KILL_NUMBER-th time."""
    from launch import cli

    if "KILL_NUMBER" in os.environ:
        run, left = os.environ["KILL_RUN"], [int(os.environ["KILL_NUMBER"])]

        def watch(event: str, arguments: tuple) -> None:  # ranks are forked from this process, and have it too
            if not changes_a_file(event, arguments, run) or os.environ.get("RANK") != "0":
                return
            left[0] -= 1
            if left[0] == 0:
                strike(os.environ["KILL_VICTIM"], int(os.environ["KILL_RANK"]), os.getppid())  # type: ignore[arg-type]

        sys.addaudithook(watch)
    cli.main()


def changes_a_file(event: str, arguments: tuple, run: str) -> bool:
    """Return whether an event changes a file of the run directory, its lock left out: a lock that was cut off costs a minute of waiting."""
    if event == "open":
        path, _, flags = arguments
        changes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    else:
        path, changes = (arguments or [None])[0], event in CHANGES
    return changes and str(path).startswith(run) and not Path(str(path)).name.startswith("lock.json")


if __name__ == "__main__":
    main()
