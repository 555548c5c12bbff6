"""One live run per run directory: rank 0 holds a lock from before the first file is written until the run has ended, however it ends.

A run that was killed leaves its lock, and the next start takes it over. It does so at once if it sees that the process is gone, and
after STALE_SECONDS without a heartbeat if the process was on another machine.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from data_pipelines.errors import UserError
from data_pipelines.storage.passing_trouble import is_passing, unavailable
from tdformer.rundir import lock_file
from tdformer.rundir.lock_file import STALE_SECONDS
from tdformer.rundir.lock_holder import Holder, this_process
from tdformer.rundir.run_dir import RunDir

BEAT_SECONDS = 10.0
SECONDS_FOR_ENDING = 60.0
"""A start waits so long for a run whose launcher was killed: that run finishes its step and saves."""
POLL_SECONDS = 0.5


def check_free(run_dir: RunDir) -> None:
    """Raise UserError if a process of this machine holds the directory and will not end soon. Waits for nothing, changes nothing."""
    try:
        holder = lock_file.read(run_dir.lock)
    except OSError as error:
        raise _cannot_be_locked(run_dir, error) from None
    if holder and holder.is_here and holder.is_running and not holder.is_ending:
        raise UserError(_refusal(run_dir, holder))


def is_held(run_dir: RunDir) -> bool:
    """Return True if a process trains this run. Writes nothing, and so goes by the clock of this machine, not of the file system."""
    try:
        holder = lock_file.read(run_dir.lock)
        if holder and holder.is_here:
            return holder.is_running
        beat = lock_file.last_beat(run_dir.lock)
        return beat is not None and time.time() - beat < STALE_SECONDS
    except OSError:
        return False


@contextmanager
def held(run_dir: RunDir, on_lost: Callable[[str], object]) -> Iterator[HeldLock]:
    """Hold the run directory. A thread calls `on_lost` with a reason if another process takes the lock nevertheless.

    Raises UserError if another live run holds it.
    """
    lock = HeldLock(run_dir.lock, this_process())
    try:
        _acquire(run_dir, lock.own)
    except OSError as error:
        raise _cannot_be_locked(run_dir, error) from None
    ended = threading.Event()
    threading.Thread(target=_keep, args=(lock, ended, on_lost), name="run lock", daemon=True).start()
    try:
        yield lock
    finally:
        ended.set()
        with suppress(OSError):  # The lock becomes stale, since nobody renews it.
            lock.release()


@dataclass
class HeldLock:
    """The lock of a run directory, while this process holds it."""

    path: Path
    own: Holder
    _is_released: bool = False
    _mutex: threading.Lock = field(default_factory=threading.Lock)
    """It keeps `still_mine` from making the lock again while another thread releases it."""

    def still_mine(self) -> bool:
        """Return False if another process has taken the lock, or if it was released. Make it again if somebody removed it by hand.

        This reads one small file. Raises OSError if the file system does not answer.
        """
        with self._mutex:
            return not self._is_released and (lock_file.read(self.path) == self.own or lock_file.create(self.path, self.own))

    def release(self) -> None:
        """Remove the lock, unless another process has taken it."""
        with self._mutex:
            self._is_released = True
            lock_file.release(self.path, self.own)


def _keep(lock: HeldLock, ended: threading.Event, on_lost: Callable[[str], object]) -> None:
    while not ended.wait(BEAT_SECONDS):
        with suppress(OSError):  # The file system may answer the next time.
            if lock.still_mine():
                lock_file.beat(lock.path)
            elif not ended.is_set():
                holder = lock_file.read(lock.path) or "another run"
                on_lost(f"{lock.path} was taken over by {holder}; only one run may write to a run directory")
                return


def _acquire(run_dir: RunDir, own: Holder) -> None:
    path = run_dir.lock
    began, first_beat, is_announced = time.monotonic(), lock_file.last_beat(path), False
    while not lock_file.take(path, own):
        holder, waited = lock_file.read(path), time.monotonic() - began
        if _goes_on(path, holder, first_beat, waited):
            raise UserError(_refusal(run_dir, holder))
        if not is_announced:
            _announce(run_dir, holder)
            is_announced = True
        time.sleep(POLL_SECONDS)


def _goes_on(path: Path, holder: Holder | None, first_beat: float | None, waited: float) -> bool:
    """Return True if the holder surely lives and is not about to end. `first_beat` was its last one `waited` seconds ago."""
    if holder and holder.is_here:
        return holder.is_running and (not holder.is_ending or waited > SECONDS_FOR_ENDING)
    return lock_file.last_beat(path) not in (None, first_beat) or waited > 2 * STALE_SECONDS


def _announce(run_dir: RunDir, holder: Holder | None) -> None:
    who = f"{holder} holds {run_dir}" if holder else f"{run_dir.lock} is held"
    what = "is ending" if holder and holder.is_here else "gives a sign of life"
    print(f"{who}; waiting to see whether it {what}", file=sys.stderr, flush=True)


def _cannot_be_locked(run_dir: RunDir, error: OSError) -> UserError:
    if is_passing(error):
        return unavailable(f"the lock of run directory {run_dir}", error)
    return UserError(f"run directory {run_dir} cannot be locked ({error.strerror}); see that it can be written to.")


def _refusal(run_dir: RunDir, holder: Holder | None) -> str:
    who = f"another live run ({holder})" if holder else "another run"
    return (
        f"run directory {run_dir} is held by {who}; end that one first, or choose another --run-dir. If it is dead on a machine "
        f"that cannot be seen from here, wait {STALE_SECONDS:g} s or remove {run_dir.lock}."
    )
