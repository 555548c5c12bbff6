"""Tells a run directory that was copied from one that was moved, or that has two names.

Files that name their holder, their MLflow run or their job also note the folder for which they were written.
"""

from __future__ import annotations

import os
from pathlib import Path


def original_of(path: Path, noted: str) -> Path | None:
    """Return the path of the same name in the folder `noted`, if that is another folder than that of `path`, and None otherwise.

    If what lies there is the same, `path` was copied from there together with its folder, or got a second name (`cp -l`). None means that
    the folder was moved, or that `noted` is another name of it. Raises OSError if the file system does not answer.
    """
    try:
        return None if os.path.samefile(noted, path.parent) else Path(noted) / path.name
    except (FileNotFoundError, NotADirectoryError):
        return None
