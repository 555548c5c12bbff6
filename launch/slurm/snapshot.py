"""A copy of the code in the run directory: a job that waits, or comes back, runs what was submitted, whatever is edited meanwhile."""

from __future__ import annotations

import shutil
from pathlib import Path

from tdformer.rundir.code_version import COMMIT_FILE, PACKAGES, ROOT, changes, code_version

CHANGES_FILE = "changes.patch"


def snapshot(folder: Path) -> None:
    """Replace `folder` by the code as it is now; with the commit and what differs from it, where it is a git checkout."""
    shutil.rmtree(folder, ignore_errors=True)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    if (commit := code_version()) is None:
        return
    (folder / COMMIT_FILE).write_text(commit + "\n")
    if patch := changes():
        (folder / CHANGES_FILE).write_text(patch)
