"""When and on what a run was computed: a file in RUN/sessions for every time that it was started. Imports no torch."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from data_pipelines.storage.files import replace_file
from tdformer.rundir.run_dir import RunDir

Status = Literal["running", "finished", "stopped", "failed"]


@dataclass(frozen=True)
class Session:
    """One time that a run was trained, from a start to an end."""

    began: float
    """In seconds since 1970, as `seen`, the last sign of life."""
    seen: float
    world_size: int
    """Processes."""
    gpus: int = 0
    """Per machine or in all; 0: trained on CPUs."""
    device: str = ""
    host: str = ""
    first_step: int = 0
    step: int = 0
    status: str = "running"
    """A Status; still "running" after a kill."""
    comes_back: bool = False
    """Stopped, and its job is put back into the queue."""
    slurm_job: str | None = None
    restart: int | None = None
    commit: str | None = None
    """Of the code, followed by " changed" if it was edited since."""
    versions: dict[str, str] | None = None
    """Of the packages that compute."""

    @property
    def device_hours(self) -> float:
        """Hours times processes, one per GPU."""
        return max(self.seen - self.began, 0) / 3600 * self.world_size


class SessionFile:
    """This start's own file: written at the beginning, at most every few seconds while it goes on, and at the end."""

    SECONDS_BETWEEN = 5.0

    def __init__(self, run_dir: RunDir, session: Session) -> None:
        """Raises OSError."""
        self._folder = run_dir.sessions
        self._folder.mkdir(exist_ok=True)
        number = max((int(path.stem) for path in files(run_dir)), default=0) + 1
        self.path, self.session = self._folder / f"{number:04d}.json", session
        self._write()

    def reached(self, step: int) -> None:
        """A sign of life. Raises OSError."""
        long_ago = time.time() - self.session.seen > self.SECONDS_BETWEEN
        self.session = replace(self.session, step=step)
        if long_ago:
            self._write()

    def end(self, status: Status, comes_back: bool = False) -> None:
        """Raises OSError."""
        self.session = replace(self.session, status=status, comes_back=comes_back)
        self._write()

    def discard(self) -> None:
        """The start was refused."""
        self.path.unlink(missing_ok=True)
        with suppress(OSError):
            self._folder.rmdir()  # empty if there was no session before

    def _write(self) -> None:
        self.session = replace(self.session, seen=time.time())
        write(self.path, self.session)


def write(path: Path, session: Session) -> None:
    replace_file(path, lambda partial: partial.write_text(json.dumps(asdict(session)) + "\n"))


def files(run_dir: RunDir) -> list[Path]:
    """Of all sessions, from the first to the last."""
    return sorted(path for path in (run_dir.sessions).glob("[0-9]*.json") if path.stem.isdigit())


def read(path: Path) -> Session:
    """Unknown keys are those of a younger version. Raises ValueError for what is no session, and OSError."""
    try:
        return _session(json.loads(path.read_bytes()))
    except (TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is no session ({error})") from None


def _session(tree: dict[str, Any]) -> Session:
    known = {field.name: tree[field.name] for field in fields(Session) if field.name in tree}
    numbers = {name: float(known[name]) for name in ("began", "seen")}
    counts = {name: int(known.get(name, 0)) for name in ("world_size", "gpus", "first_step", "step")}
    texts = {name: str(known.get(name, "")) for name in ("device", "host", "status")}
    return Session(**{**known, **numbers, **counts, **texts})


def read_all(run_dir: RunDir) -> tuple[list[Session], list[str]]:
    """Sessions from the first to the last, and a note for each that cannot be read."""
    sessions, notes = [], []
    for path in files(run_dir):
        try:
            sessions.append(read(path))
        except (OSError, ValueError):
            notes.append(f"{run_dir.sessions.name}/{path.name} cannot be read; its time is not counted")
    return sessions, notes


def close_last(run_dir: RunDir, *, comes_back: bool = True) -> bool:
    """Put the last session of a run without a process in order; whether there was something to. Left open by a death, it has failed.

    comes_back: False if its job does not come back, whatever was thought when it ended. Raises OSError and ValueError.
    """
    for path in files(run_dir)[-1:]:
        session = read(path)
        status = "failed" if session.status == "running" else session.status
        closed = replace(session, status=status, comes_back=session.comes_back and comes_back)
        if closed != session:
            write(path, closed)
            return True
    return False
