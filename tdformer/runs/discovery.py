"""Finds run directories in folders."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from data_pipelines.errors import UserError
from data_pipelines.storage.passing_trouble import is_passing, unavailable
from tdformer.rundir.run_dir import RunDir


def is_run(path: Path) -> bool:
    """Return whether a path is a run directory."""
    return RunDir(path).config.is_file() or RunDir(path).metrics.is_file()


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """Return the run directories among these paths and within them, each once, in order.

    A folder of runs can hold folders of runs, such as those of sweeps. Deeper folders are not searched.
    Raises UserError for a path that neither is a run directory nor holds one.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        if not path.is_dir():
            raise UserError(f"there is no folder {path}; give run directories, or folders of runs.")
        runs = [path] if is_run(path) else list(_within(path, depth=2))
        if not runs:
            raise UserError(f"{path} is no run directory and holds none; give run directories (with a config.yaml), or folders of runs.")
        for run in runs:
            found.setdefault(run.resolve(), run)
    return list(found.values())


def _within(folder: Path, depth: int) -> Iterable[Path]:
    try:
        children = sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    except OSError as error:
        if is_passing(error):
            raise unavailable(f"folder {folder}", error) from None
        raise UserError(f"folder {folder} cannot be read ({error.strerror}); see to its permissions.") from None
    for child in children:
        if is_run(child):
            yield child
        elif depth > 1:
            yield from _within(child, depth - 1)
