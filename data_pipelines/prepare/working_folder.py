"""TODO."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_pipelines.errors import DataError
from data_pipelines.formats.ffcv_joiner import BETON
from data_pipelines.formats.manifest import MANIFEST, RECIPE, UNFINISHED
from data_pipelines.prepare.journal import LEFT_OUT
from data_pipelines.storage.files import replace_file


def is_written(folder: Path) -> bool:
    """Whether there is a data set, whole, in a folder."""
    try:
        return (folder / MANIFEST).is_file()
    except OSError as error:
        raise DataError(f"{folder} cannot be used ({error.strerror}); choose another folder.") from None


@contextmanager
def working_folder(folder: Path, recipe: dict[str, Any]) -> Iterator[Path]:
    """The folder for what is unfinished, made or found again, and held against other processes."""
    work = folder / UNFINISHED
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (work.exists() or (folder / MANIFEST).exists()) and (there := _of_a_set(folder)):
            raise DataError(
                f"{folder} holds {there[0].name} but no manifest: it was not written here; choose another folder, "
                f"or, if nothing in it is needed, remove {folder} first."
            )
        work.mkdir(exist_ok=True)
        lock = (work / "lock").open("w")
    except OSError as error:
        raise DataError(f"{folder} cannot be made ({error.strerror}); choose another folder.") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DataError(f"another process is writing {folder}; wait for it, or choose another folder.") from None
        if (folder / MANIFEST).exists():
            raise DataError(f"another process has just finished {folder}; give the same command again, or choose another folder.")
        try:
            _check_recipe(work, recipe)
            for name in ("shard-*.tar", BETON, "index-*.npy", LEFT_OUT, MANIFEST):
                for left_behind in folder.glob(f".[0-9]*-{name}"):
                    left_behind.unlink()
        except OSError as error:
            raise cannot_be_written(folder, error) from None
        yield work


def cannot_be_written(path: Path, error: OSError) -> DataError:
    return DataError(f"{path} cannot be written ({error.strerror or error}); the same command goes on from here.")


def _of_a_set(folder: Path) -> list[Path]:
    """Files that a data set consists of, which would be written anew."""
    return sorted(path for name in ("shard-*.tar", BETON, "index-*.npy", LEFT_OUT) for path in folder.glob(name))


def _check_recipe(work: Path, recipe: dict[str, Any]) -> None:
    """Nothing that was made by another recipe may be kept. If nothing was finished, there is nothing to keep."""
    path, begun = work / RECIPE, work.parent
    try:
        before = json.loads(path.read_text()) if path.exists() and any(work.glob("part-*.json")) else recipe
    except ValueError:
        before = {}
    if other := difference(before, recipe):
        raise DataError(f"{begun} was begun otherwise ({other}); remove {begun}, or give what it was begun with to go on.")
    replace_file(path, lambda partial: partial.write_text(json.dumps(recipe)))


def difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What two recipes differ in, in words; "" if in nothing."""
    names = [name for name in now if before.get(name) != now[name]]
    told = [f"{name} {before.get(name)}, now {now[name]}" for name in names if name not in ("source", "classes")]
    return "; ".join(told + [f"another {name}" if name == "source" else f"other {name}" for name in names if name in ("source", "classes")])
