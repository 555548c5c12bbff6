"""One live run per run directory. Rank 0 holds the lock, from before the first file is written until the run has ended, however it ends.

A run that was killed leaves its lock; the next start takes it over, at once where it sees that the process is gone, and after
STALE_SECONDS without a sign of life where the process was on another machine.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data_pipelines.errors import UserError
from tdformer.rundir import lock_file
from tdformer.rundir.lock_file import BEAT_SECONDS, STALE_SECONDS, Holder
from tdformer.rundir.run_dir import RunDir

SECONDS_FOR_ENDING = 60.0
"""How long a start waits for a run whose launcher was killed: it finishes its step and saves."""
POLL_SECONDS = 0.5


def check_free(run_dir: RunDir) -> None:
    """Raise UserError if a process of this machine holds the directory and will not end soon. Waits for nothing, changes nothing."""
    holder = lock_file.read(run_dir.lock)
    if holder and holder.is_here and holder.is_running and not holder.is_ending:
        raise UserError(_refusal(run_dir, holder))


@contextmanager
def held(run_dir: RunDir, lost: Callable[[str], object]) -> Iterator[None]:
    """Hold the run directory. `lost` is called, with a reason, by another thread if someone else has taken it nevertheless.

    Raises UserError if another live run holds it.
    """
    path, own = run_dir.lock, lock_file.this_process()
    try:
        _acquire(run_dir, path, own)
    except OSError as error:
        raise UserError(f"run directory {run_dir} cannot be locked ({error.strerror}); see that it can be written to.") from None
    ended = threading.Event()
    threading.Thread(target=_beat, args=(path, own, ended, lost), name="run lock", daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        with suppress(OSError):  # nobody renews it any more
            lock_file.release(path, own)


def _acquire(run_dir: RunDir, path: Path, own: Holder) -> None:
    watch = _Watch(run_dir, path)
    while not lock_file.create(path, own):
        holder = lock_file.read(path)
        if watch.is_dead(holder):
            if lock_file.replace(path, holder, own):
                return
        elif watch.is_alive(holder):
            raise UserError(_refusal(run_dir, holder))
        else:
            watch.say(holder)
        time.sleep(POLL_SECONDS)


class _Watch:
    """What is learnt of a holder by waiting."""

    def __init__(self, run_dir: RunDir, path: Path) -> None:
        self.run_dir, self.path = run_dir, path
        self.began, self.first_age = time.monotonic(), lock_file.age(path, run_dir.path)
        self.has_said = False

    def is_dead(self, holder: Holder | None) -> bool:
        if holder and holder.is_here:
            return not holder.is_running
        return lock_file.age(self.path, self.run_dir.path) > STALE_SECONDS

    def is_alive(self, holder: Holder | None) -> bool:
        """Surely, and not about to end."""
        waited = time.monotonic() - self.began
        if holder and holder.is_here:
            return not holder.is_ending or waited > SECONDS_FOR_ENDING
        has_beaten = lock_file.age(self.path, self.run_dir.path) < self.first_age + waited - BEAT_SECONDS / 5
        return has_beaten or waited > 2 * STALE_SECONDS

    def say(self, holder: Holder | None) -> None:
        if not self.has_said:
            whom = f"{holder} holds {self.run_dir}" if holder else f"{self.path} is held"
            ends = "is ending" if holder and holder.is_here else "gives a sign of life"
            print(f"{whom}; waiting to see whether it {ends}", file=sys.stderr, flush=True)
        self.has_said = True


def _beat(path: Path, own: Holder, ended: threading.Event, lost: Callable[[str], object]) -> None:
    while not ended.wait(BEAT_SECONDS):
        try:
            holder = lock_file.read(path)
            if holder != own and path.exists():
                lost(f"{path} was taken over by {holder or 'another run'}; only one run may write to a run directory")
                return
            if holder is None:
                lock_file.create(path, own)  # someone removed it, and nobody has taken it yet
            lock_file.beat(path)
        except OSError:
            continue  # of a file system that does not answer well; it may next time


def _refusal(run_dir: RunDir, holder: Holder | None) -> str:
    who = f"another live run ({holder})" if holder else "another run"
    return (
        f"run directory {run_dir} is held by {who}; end that one first, or choose another --run-dir. If it is dead on a machine that "
        f"cannot be seen from here, wait {STALE_SECONDS:g} s or remove {run_dir.lock}."
    )
