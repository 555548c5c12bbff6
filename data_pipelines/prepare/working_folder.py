"""Keeps unfinished work in the folder `.unfinished` of a data set, and locks it against other processes.

The folder holds the recipe and the records of the finished parts. It goes when the manifest is written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from data_pipelines.errors import DataError, UnavailableError, UserError
from data_pipelines.formats.ffcv_joiner import FFCV_FILE
from data_pipelines.formats.manifest import MANIFEST, RECIPE, UNFINISHED
from data_pipelines.prepare.journal import LEFT_OUT
from data_pipelines.storage.files import replace_file
from data_pipelines.storage.locks import HeldError, locked
from data_pipelines.storage.passing_trouble import is_passing, read_error

DATASET_FILES = ("shard-*.tar", FFCV_FILE, "index-*.npy", LEFT_OUT)
"""Patterns of all files of a data set but its manifest."""


@contextmanager
def working_folder(folder: Path, recipe: dict[str, Any]) -> Iterator[Path]:
    """Make or find the working folder of the data set in `folder`, and hold its lock.

    Raises DataError if another process holds it, if it was begun with another recipe, or if `folder` holds files of a data set
    that was not written here.
    """
    work = _made(folder)
    with ExitStack() as lock:
        _take(lock, folder, work)
        if is_complete(folder):
            raise DataError(f"another process has just finished {folder}; give the same command again, or choose another folder.")
        try:
            _check_recipe(work, recipe)
            _remove_partial_files(folder)
        except OSError as error:
            raise write_error(folder, error) from None
        yield work


def _made(folder: Path) -> Path:
    work = folder / UNFINISHED
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (work.exists() or (folder / MANIFEST).exists()):
            _refuse_foreign_files(folder)
        work.mkdir(exist_ok=True)
    except OSError as error:
        raise read_error(folder, error, f"{folder} cannot be made ({error.strerror}); choose another folder.") from None
    return work


def _take(lock: ExitStack, folder: Path, work: Path) -> None:
    try:
        lock.enter_context(locked(work / "lock", wait=False, across_machines=True))
    except HeldError as held:
        more = f" ({held})" if str(held) else ""
        raise DataError(f"another process is writing {folder}{more}; wait for it, or choose another folder.") from None
    except OSError as error:
        remedy = "see that it can be written to, or choose another folder"
        raise read_error(folder, error, f"{folder} cannot be locked ({error.strerror}); {remedy}.") from None


def _refuse_foreign_files(folder: Path) -> None:
    """Files with our names, but without a manifest or a working folder, belong to somebody else and must not be overwritten."""
    if found := sorted(path for pattern in DATASET_FILES for path in folder.glob(pattern)):
        raise DataError(
            f"{folder} holds {found[0].name} but no manifest: it was not written here; choose another folder, "
            f"or, if nothing in it is needed, remove {folder} first."
        )


def _remove_partial_files(folder: Path) -> None:
    """Remove the temporary files that `replace_file` left in a killed process."""
    for pattern in (*DATASET_FILES, MANIFEST):
        for partial in folder.glob(f".[0-9]*-{pattern}"):
            partial.unlink()


def _check_recipe(work: Path, recipe: dict[str, Any]) -> None:
    """Refuse to mix parts of two recipes. Without a finished part there is nothing to mix, and the recipe may change."""
    path, begun = work / RECIPE, work.parent
    try:
        before = json.loads(path.read_text()) if path.exists() and any(work.glob("part-*.json")) else recipe
    except ValueError:
        before = {}
    if other := recipe_difference(before, recipe):
        raise DataError(f"{begun} was begun otherwise ({other}); remove {begun}, or give what it was begun with to go on.")
    replace_file(path, lambda partial: partial.write_text(json.dumps(recipe)))


def recipe_difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Say in words how two recipes differ. Returns "" if they are equal."""
    names = [name for name in now if before.get(name) != now[name]]
    short = {"source": "another source", "classes": "other classes"}  # their values are too long for a message
    differences = [f"{name} {before.get(name)}, now {now[name]}" for name in names if name not in short]
    return "; ".join(differences + [short[name] for name in names if name in short])


def is_complete(folder: Path) -> bool:
    """True if the folder holds a complete data set. Raises DataError or UnavailableError if the folder cannot be read."""
    try:
        return (folder / MANIFEST).is_file()
    except OSError as error:
        raise read_error(folder, error, f"{folder} cannot be used ({error.strerror}); choose another folder.") from None


def write_error(path: Path, error: OSError) -> UserError:
    """Make the error for a file that cannot be written, or be read back. It is an UnavailableError if nobody has to make room for it."""
    text = f"cannot be written ({error.strerror or error}); the same command goes on from here."
    return UnavailableError(f"{path} {text}") if is_passing(error) else DataError(f"{path} {text}")
