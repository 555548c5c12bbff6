"""Keeps a file in RUN/sessions for every time that a run was started: when, where, and how it ended. Imports no torch."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from data_pipelines.storage.files import replace_file
from tdformer.rundir.run_dir import RunDir

Status = Literal["running", "finished", "stopped", "failed"]


@dataclass(frozen=True)
class Session:
    """Describes one time that a run was trained, from its start to its end."""

    began: float
    """Start of the session, in seconds since 1970. `seen` is its last sign of life."""
    seen: float
    world_size: int
    """Number of processes."""
    gpus: int = 0
    """Number of GPUs over all processes. 0 means that the run was trained on CPUs."""
    device: str = ""
    host: str = ""
    reduction: str = ""
    """How gradients were summed over the processes: exact or fast. Empty: an earlier version did not say it."""
    first_step: int = 0
    step: int = 0
    status: str = "running"
    """One of Status. It stays "running" after a kill."""
    comes_back: bool = False
    """True if the session was stopped and its job is put back into the queue."""
    slurm_job: str | None = None
    restart: int | None = None
    commit: str | None = None
    """Commit of the code, followed by " changed" if the code was edited since."""
    versions: dict[str, str] | None = None
    """Versions of the packages that compute."""

    @property
    def device_hours(self) -> float:
        """Return hours times processes. There is one process per GPU."""
        return max(self.seen - self.began, 0) / 3600 * self.world_size


class SessionFile:
    """Writes the file of this session: at its start, every few seconds at most while it goes on, and at its end."""

    SECONDS_BETWEEN = 5.0

    def __init__(self, run_dir: RunDir, session: Session) -> None:
        """Write the file of a new session. Raises OSError."""
        self._folder = run_dir.sessions
        self._folder.mkdir(exist_ok=True)
        number = max((int(path.stem) for path in files(run_dir)), default=0) + 1
        self.path, self.session = self._folder / f"{number:04d}.json", session
        self._write()

    def reached(self, step: int) -> None:
        """Note the step, as a sign of life. Raises OSError."""
        long_ago = time.time() - self.session.seen > self.SECONDS_BETWEEN
        self.session = replace(self.session, step=step)
        if long_ago:
            self._write()

    def end(self, status: Status, comes_back: bool = False) -> None:
        """Note how the session ended. Raises OSError."""
        self.session = replace(self.session, status=status, comes_back=comes_back)
        self._write()

    def discard(self) -> None:
        """Remove the file, because the start was refused."""
        self.path.unlink(missing_ok=True)
        with suppress(OSError):
            self._folder.rmdir()  # empty if there was no session before

    def _write(self) -> None:
        self.session = replace(self.session, seen=time.time())
        write(self.path, self.session)


def write(path: Path, session: Session, others: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Write the file of a session. `others`: keys that a newer version of the program wrote, and that must stay. Raises OSError."""
    replace_file(path, lambda partial: partial.write_text(json.dumps({**others, **asdict(session)}) + "\n"))


def files(run_dir: RunDir) -> list[Path]:
    """Return the files of all sessions, from the first to the last."""
    return sorted(path for path in (run_dir.sessions).glob("[0-9]*.json") if path.stem.isdigit())


def read(path: Path) -> Session:
    """Read a session. Unknown keys are ignored: a newer version wrote them. Raises ValueError if it is no session, and OSError."""
    try:
        return _session(json.loads(path.read_bytes()))
    except (TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is no session ({error})") from None


def _session(tree: dict[str, Any]) -> Session:
    known = {field.name: tree[field.name] for field in fields(Session) if field.name in tree}
    numbers = {name: float(known[name]) for name in ("began", "seen")}
    counts = {name: int(known.get(name, 0)) for name in ("world_size", "gpus", "first_step", "step")}
    texts = {name: str(known.get(name, "")) for name in ("device", "host", "reduction", "status")}
    return Session(**{**known, **numbers, **counts, **texts})


def read_all(run_dir: RunDir) -> tuple[list[Session], list[str]]:
    """Return the sessions from the first to the last, and a note for each that cannot be read."""
    sessions, notes = [], []
    for path in files(run_dir):
        try:
            sessions.append(read(path))
        except (OSError, ValueError):
            notes.append(f"{run_dir.sessions.name}/{path.name} cannot be read; its time is not counted")
    return sessions, notes


def close_last(run_dir: RunDir, *, comes_back: bool = True) -> bool:
    """Close the last session of a run that has no process. A session that is still open has failed. Tell whether anything changed.

    comes_back: False if the job does not come back, although the session says so. Raises OSError and ValueError.
    """
    for path in files(run_dir)[-1:]:
        session = read(path)
        status = "failed" if session.status == "running" else session.status
        closed = replace(session, status=status, comes_back=session.comes_back and comes_back)
        if closed != session:
            write(path, closed, others=json.loads(path.read_bytes()))
            return True
    return False
