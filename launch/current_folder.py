"""Keeps the current folder out of imports: a file launch.py or random.py there is not taken for ours, or for Python's.

This module imports nothing that an interpreter has not imported by itself before.
"""

from __future__ import annotations

import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
"""The folder of our packages."""
VARIABLE = "PYTHONPATH"


def leave_out() -> None:
    """Import nothing from the current folder, in this process and in every Python process that it starts.

    `python -m` and `python -c`, with which ranks and helpers of loaders are started, put that folder first on the path. An empty part of
    PYTHONPATH means it too, which `PYTHONPATH=$PYTHONPATH:…` has if the variable was not set. The folder stays on the path if our packages
    are there, and child processes then find them by PYTHONPATH.
    """
    os.environ["PYTHONSAFEPATH"] = "1"
    parts = os.environ.get(VARIABLE, "").split(os.pathsep)
    wanted, here = [part for part in parts if part], _absolute(".")
    if here == ROOT and ROOT in map(_absolute, sys.path):
        wanted = [ROOT, *(part for part in wanted if _absolute(part) != ROOT)]
    else:
        _forget(here, is_first=not sys.flags.safe_path, is_later=VARIABLE in os.environ and len(wanted) < len(parts))
    if wanted:
        os.environ[VARIABLE] = os.pathsep.join(wanted)
    else:
        os.environ.pop(VARIABLE, None)


def _forget(folder: str, *, is_first: bool, is_later: bool) -> None:
    """Remove a folder from the path: from its beginning, and from the place that PYTHONPATH gave it."""
    if is_first and sys.path and _absolute(sys.path[0]) == folder:
        del sys.path[0]
    if is_later:
        place = next((index for index, path in enumerate(sys.path) if _absolute(path) == folder), None)
        if place is not None:
            del sys.path[place]


def _absolute(path: str) -> str:
    try:
        return os.path.abspath(path)
    except OSError:  # somebody has removed the current folder
        return ""
