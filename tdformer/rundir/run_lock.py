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
from data_pipelines.storage.files import replace_file
from data_pipelines.storage.passing_trouble import is_passing, unavailable
from tdformer.rundir import lock_file
from tdformer.rundir.lock_file import STALE_SECONDS
from tdformer.rundir.lock_holder import Holder, this_process
from tdformer.rundir.run_dir import RunDir

MayWrite = Callable[[], bool]
"""HeldLock.may_write, for code that writes into a run directory and need not know its lock."""

BEAT_SECONDS = 10.0
SECONDS_FOR_ENDING = 60.0
"""A start waits so long for a run whose launcher was killed: that run finishes its step and saves."""
POLL_SECONDS = 0.5


def always() -> bool:
    """Stand for HeldLock.may_write where nothing else can write."""
    return True


def check_free(run_dir: RunDir) -> None:
    """Raise UserError if a process of this machine holds the directory and will not end soon. Waits for nothing, changes nothing."""
    try:
        holder = lock_file.read(run_dir.lock)
    except OSError as error:
        raise _cannot_be_locked(run_dir, error) from None
    if holder and holder.is_here and not lock_file.is_stale(run_dir.lock, holder) and not holder.is_ending:
        raise UserError(_refusal(run_dir, holder))


def is_held(run_dir: RunDir) -> bool:
    """Return True if a process trains this run. Writes nothing, and so goes by the clock of this machine, not of the file system."""
    try:
        holder = lock_file.read(run_dir.lock)
        if holder and (holder.is_here or lock_file.is_copy(run_dir.lock, holder)):
            return not lock_file.is_stale(run_dir.lock, holder)
        beat = lock_file.last_beat(run_dir.lock)
        return beat is not None and time.time() - beat < STALE_SECONDS
    except OSError:
        return False


@contextmanager
def held(run_dir: RunDir, on_lost: Callable[[str], object]) -> Iterator[HeldLock]:
    """Hold the run directory. `on_lost` is called with a reason, once, if another process takes it nevertheless, or if it is gone.

    Raises UserError if another live run holds it.
    """
    lock = HeldLock(run_dir, this_process(run_dir.path), on_lost)
    try:
        _acquire(run_dir, lock.own)
        _note_holder(run_dir, lock.own)
    except OSError as error:
        raise _cannot_be_locked(run_dir, error) from None
    ended = threading.Event()
    threading.Thread(target=_keep, args=(lock, ended), name="run lock", daemon=True).start()
    try:
        yield lock
    finally:
        ended.set()
        with suppress(OSError):  # The lock becomes stale, since nobody renews it.
            lock.release()


@dataclass
class HeldLock:
    """The lock of a run directory, while this process holds it."""

    run_dir: RunDir
    own: Holder
    on_lost: Callable[[str], object]
    is_lost: bool = False
    """True once `may_write` found that another process has the lock, or that the run directory is gone."""
    _is_released: bool = False
    _was_run_dir: bool = False
    """True once the folder was seen to have a configuration. The lock is made before that is written."""
    _mutex: threading.Lock = field(default_factory=threading.Lock)
    """It keeps `may_write` from making the lock again while another thread releases it."""

    def may_write(self) -> bool:
        """Tell whether the run directory is still this process's own. Whoever writes into it asks this first.

        A process that was halted for long may have lost it meanwhile, even to one that has ended since. This reads one small file. A
        lock that somebody removed by hand is made again. Raises OSError if the file system does not answer.
        """
        with self._mutex:
            if self.is_lost or self._is_released:
                return False
            if not (reason := self._reason_of_loss()):
                return True
            self.is_lost = True
        self.on_lost(reason)
        return False

    def release(self) -> None:
        """Remove the lock, unless another process has taken it."""
        with self._mutex:
            self._is_released = True
            lock_file.release(self.run_dir.lock, self.own)

    def _reason_of_loss(self) -> str:
        path = self.run_dir.lock
        is_ours, is_run_dir = lock_file.read(path) == self.own, self.run_dir.config.exists()
        if not is_run_dir and (self._was_run_dir or not is_ours):
            return f"{self.run_dir} is gone: it was removed, renamed or unmounted while it was trained"
        self._was_run_dir = is_run_dir
        if is_ours:
            return ""
        if _noted_holder(self.run_dir) in (self.own.token, None) and lock_file.create(path, self.own):
            return ""
        holder = lock_file.read(path) or "another run"
        return f"{path} was taken over by {holder}; only one run may write to a run directory"


def _note_holder(run_dir: RunDir, own: Holder) -> None:
    """Note who holds the lock. Whoever held it before then knows that the run went on without him, also when the lock is free again."""
    try:
        replace_file(run_dir.last_holder, lambda partial: partial.write_text(f"{own.token}\n"))
    except OSError:
        lock_file.release(run_dir.lock, own)
        raise


def _noted_holder(run_dir: RunDir) -> str | None:
    try:
        return run_dir.last_holder.read_text(errors="replace").strip()
    except FileNotFoundError:
        return None


def _keep(lock: HeldLock, ended: threading.Event) -> None:
    while not ended.wait(BEAT_SECONDS):
        with suppress(OSError):  # The file system may answer the next time.
            if not lock.may_write():
                return
            lock_file.beat(lock.run_dir.lock)


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
