"""The checkpoints of one run: saved so that a crash loses none, thinned out, and found again.

A checkpoint is written under a hidden name, synced to the disk and then renamed. Therefore a folder named step-… has all its files.
Only rank 0 writes.
"""

from __future__ import annotations

import errno
import itertools
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from data_pipelines.storage.passing_trouble import ABOUT_WRITING, reading_own
from tdformer.checkpoint.format import NAME, Checkpoint, CheckpointError, all_in, check, sync_to_disk, was_best, write_files
from tdformer.checkpoint.train_state import Snapshot, TrainState
from tdformer.rundir import sessions
from tdformer.rundir.run_dir import RunDir
from tdformer.rundir.run_lock import MayWrite, always
from tdformer.rundir.sessions import Session


@dataclass(frozen=True)
class RetentionPolicy:
    """Says which checkpoints stay: the last ones, those whose step is a multiple of `every`, and the best one."""

    last: int = 2
    every: int | None = None


# --- saving ------------------------------------------------------------------------------------------------


def save(
    run_dir: RunDir,
    snapshot: Snapshot,
    config_yaml: str,
    *,
    is_best: bool = False,
    retention: RetentionPolicy = RetentionPolicy(),
    may_write: MayWrite = always,
) -> Checkpoint:
    """Write a checkpoint, point `latest` (and `best`) to it, and remove old ones. Only rank 0 calls this.

    may_write: HeldLock.may_write. Raises CheckpointError if the checkpoint cannot be written, or if another process has taken the run
    over. Earlier checkpoints then stay as they are.
    """
    root = run_dir.checkpoints
    final = Checkpoint.of_step(root, snapshot.train_state.step)
    partial = Checkpoint(root, f".partial-{final.name}-{secrets.token_hex(4)}")  # a process that lost the run may still write its own

    def require_lock() -> None:
        if not may_write():
            raise CheckpointError(f"checkpoint {final} is not written: its run directory is gone, or another process trains it.")

    try:
        require_lock()
        write_files(partial, snapshot, config_yaml, is_best)
        _put(partial, final, require_lock)
        for pointer in (run_dir.last_saved, run_dir.latest, *([run_dir.best] if is_best else [])):
            _point(pointer, final, require_lock)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial.path, ignore_errors=True)
        raise CheckpointError(f"checkpoint {final} cannot be written ({error}); {_what_to_do(run_dir, error)}.") from error
    _remove_old(run_dir, retention)
    return final


def _what_to_do(run_dir: RunDir, error: Exception) -> str:
    if not run_dir.checkpoints.is_dir():
        return f"its folder {run_dir.checkpoints} is not there: bring it back"
    if isinstance(error, OSError) and error.errno in ABOUT_WRITING and error.errno != errno.EROFS:
        return "earlier ones are whole; make room and go on"
    return "earlier ones are whole; see that the folder can be written to, and go on"


def _put(partial: Checkpoint, final: Checkpoint, require_lock: Callable[[], None]) -> None:
    """Give a complete checkpoint its name. An older one of the same step is moved aside until then, so that it is not lost."""
    replaced = final.root / f".replaced-{final.name}"
    shutil.rmtree(replaced, ignore_errors=True)
    require_lock()
    if final.path.exists():
        final.path.rename(replaced)
    partial.path.rename(final.path)
    sync_to_disk(final.root)
    shutil.rmtree(replaced, ignore_errors=True)


def _point(pointer: Path, checkpoint: Checkpoint, require_lock: Callable[[], None] = lambda: None) -> None:
    partial = _partial_of(pointer)
    partial.write_text(checkpoint.name + "\n")
    sync_to_disk(partial)
    require_lock()
    partial.replace(pointer)


def _named_by(pointer: Path) -> str:
    """Return the text of a pointer file; "" if there is none. A damaged file may hold anything."""
    return pointer.read_text(errors="replace").strip() if pointer.is_file() else ""


def _partial_of(pointer: Path) -> Path:
    return pointer.with_name(f".{pointer.name}")


def _remove_old(run_dir: RunDir, retention: RetentionPolicy) -> None:
    """Remove the checkpoints that the policy does not keep.

    They are renamed first, so that a removal that is cut short leaves no half checkpoint under its name.
    """
    root, pointers = run_dir.checkpoints, (run_dir.last_saved, run_dir.latest, run_dir.best)
    named = {_named_by(pointer) for pointer in pointers}
    for old in all_in(root)[: -retention.last]:
        if old.name not in named and not (retention.every and old.step % retention.every == 0):
            shutil.rmtree(old.path.rename(root / f".removed-{old.name}"), ignore_errors=True)
    for left_behind in itertools.chain.from_iterable(root.glob(f".{kind}-*") for kind in ("partial", "replaced", "removed")):
        shutil.rmtree(left_behind, ignore_errors=True)
    for pointer in pointers:
        _partial_of(pointer).unlink(missing_ok=True)


# --- finding -----------------------------------------------------------------------------------------------


def find(path: Path, which: str = "latest") -> Checkpoint:
    """Return the checkpoint that a user means by a run directory, its folder `checkpoints`, a checkpoint, or checkpoints/best or latest.

    which: latest or best, for the first two. Raises CheckpointError if there is none, and UnavailableError if that cannot be looked at now.
    """
    with reading_own(path):
        return _find(path, which)


def _find(path: Path, which: str) -> Checkpoint:
    if Checkpoint.at(path).manifest.exists() or path.name.startswith("step-"):
        return Checkpoint.at(path)
    if is_pointer(path):
        path, which = path.parent, path.name
    root = path if path.name == "checkpoints" else RunDir(path).checkpoints
    if not (root / which).exists():
        raise CheckpointError(_nothing_called(which, path, root))
    return _pointed_to(root / which, root)


def is_pointer(path: Path) -> bool:
    """Tell whether a path is checkpoints/best or checkpoints/latest, which name another checkpoint as training goes on."""
    return path.parent.name == "checkpoints" and path.name in ("best", "latest")


def _nothing_called(which: str, path: Path, root: Path) -> str:
    """Say in a sentence why no checkpoint is found."""
    if found := all_in(root):
        return f"{root} has no file {which}, which names a checkpoint; give one of those that are there, such as {found[-1].path}."
    if root.parent.is_dir() and (root.parent / RunDir(path).config.name).exists():
        return f"{root.parent} has no checkpoint; put its folder {root.name} back, or train it."
    return f"{path} holds no {which} checkpoint; give a run directory or a folder checkpoints/step-… within one."


def _pointed_to(pointer: Path, root: Path) -> Checkpoint:
    name = _named_by(pointer)
    if not NAME.fullmatch(name):
        raise CheckpointError(f"{pointer} does not name a checkpoint; write the name of a folder step-… beside it into it.")
    return Checkpoint(root, name)


def has_any(run_dir: RunDir) -> bool:
    """Tell whether a run directory holds a pointer or a checkpoint that a resume would look at, valid or not.

    Raises UnavailableError if the folder cannot be looked at now. A run with checkpoints never begins again from nothing.
    """
    with reading_own(run_dir.checkpoints):
        return run_dir.latest.exists() or any(run_dir.checkpoints.glob("step-*"))


def can_resume(run_dir: RunDir) -> bool:
    """Tell whether a run goes on from a checkpoint, or begins.

    Raises CheckpointError if it saved checkpoints and all are gone, and UnavailableError if that cannot be looked at now.
    """
    with reading_own(run_dir.checkpoints):
        if run_dir.checkpoints.exists() and not run_dir.checkpoints.is_dir():
            raise CheckpointError(f"{run_dir.checkpoints} is no folder; move it away, because checkpoints are written there.")
        last = _named_by(run_dir.last_saved)
        has_saved = run_dir.last_saved.exists() or any(map(_shows_a_checkpoint, sessions.read_all(run_dir)[0]))
        if has_any(run_dir):
            return True
    if has_saved:
        raise CheckpointError(
            f"{run_dir} has no checkpoint any more{f', and its last one was {last}' if last else ''}; put {run_dir.checkpoints} back, or "
            f"start a new run: tdformer train {run_dir.config}"
        )
    return False


def _shows_a_checkpoint(session: Session) -> bool:
    """Tell whether a session began at a checkpoint, or ended with one."""
    return session.first_step > 0 or (session.step > 0 and session.status in ("stopped", "finished"))


def latest_valid(run_dir: RunDir) -> tuple[Checkpoint, TrainState, list[str]]:
    """Return the checkpoint to go on from, its state, and a warning for each newer one that is damaged.

    That is the checkpoint that `latest` names, else the newest one before it. Raises CheckpointError if none is valid: a run that has
    checkpoints never begins again from nothing. Raises UnavailableError if one cannot be read now: then no older one takes its place.
    """
    with reading_own(run_dir.checkpoints):
        return _latest_valid(run_dir)


def _latest_valid(run_dir: RunDir) -> tuple[Checkpoint, TrainState, list[str]]:
    _restore_replaced(run_dir.checkpoints)
    candidates, warnings = _candidates(run_dir)
    for candidate in candidates:
        try:
            train_state = check(candidate)
            _restore_best(run_dir, candidate)
            return candidate, train_state, warnings
        except CheckpointError as error:
            warnings.append(str(error))
    raise CheckpointError(f"no checkpoint of {run_dir} is whole; restore one from a copy, or start a new run. {warnings[0]}")


def _candidates(run_dir: RunDir) -> tuple[list[Checkpoint], list[str]]:
    """Return the checkpoints to try, in this order, and a warning if `latest` names none."""
    newest_first = all_in(run_dir.checkpoints)[::-1]
    try:
        named = find(run_dir.path)
    except CheckpointError:
        return newest_first, [_why_not_the_last(run_dir)]
    return [named, *(checkpoint for checkpoint in newest_first if checkpoint.step < named.step)], []


def _why_not_the_last(run_dir: RunDir) -> str:
    """Say that `latest` is missing or damaged, and which checkpoint is not there that was saved last."""
    last = _named_by(run_dir.last_saved)
    lost = NAME.fullmatch(last) is not None and not Checkpoint(run_dir.checkpoints, last).path.exists()
    return f"{run_dir.latest} is missing or damaged." + (
        f" The last checkpoint was {last}, which is not there: the steps up to it are computed again." if lost else ""
    )


def _restore_replaced(root: Path) -> None:
    """Give a checkpoint its name back if a crash came between the two renames of its replacement."""
    for replaced in root.glob(".replaced-step-*"):
        final = root / replaced.name.removeprefix(".replaced-")
        if not final.exists():
            replaced.rename(final)


def _restore_best(run_dir: RunDir, checkpoint: Checkpoint) -> None:
    """Point `best` to the best checkpoint if a crash came after that checkpoint got its name, and before the pointer was written."""
    for pointer in (run_dir.latest, run_dir.best, run_dir.last_saved):
        if pointer.is_dir():
            raise CheckpointError(f"{pointer} is a folder; move it away, because a file with the name of a checkpoint is written there.")
    if was_best(checkpoint) and _named_by(run_dir.best) != checkpoint.name:
        _point(run_dir.best, checkpoint)
