"""Keeps the current folder out of imports: a file launch.py or random.py there is not taken for ours, or for Python's.

This module imports nothing that an interpreter has not imported by itself before.
"""

from __future__ import annotations

import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
"""The folder of our packages."""


def leave_out() -> None:
    """Import nothing from the current folder, in this process and in every Python process that it starts.

    `python -m` and `python -c`, with which ranks and helpers of loaders are started, put that folder first on the path. It stays there
    only if our packages are in it, and child processes then get it as PYTHONPATH.
    """
    os.environ["PYTHONSAFEPATH"] = "1"
    if sys.flags.safe_path or not sys.path:
        return
    if (first := _absolute(sys.path[0])) == ROOT:
        _put_first(ROOT)
    elif first == _absolute("."):
        del sys.path[0]


def _absolute(path: str) -> str:
    try:
        return os.path.abspath(path)
    except OSError:  # somebody has removed the current folder
        return ""


def _put_first(folder: str) -> None:
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != folder]
    os.environ["PYTHONPATH"] = os.pathsep.join([folder, *others])
