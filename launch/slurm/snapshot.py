"""Copies the code into the run directory. A job that waits or is requeued runs the code of its submission, whatever is edited meanwhile."""

from __future__ import annotations

import shutil
from pathlib import Path

from tdformer.rundir.code_version import COMMIT_FILE, PACKAGES, ROOT, changes, code_version

CHANGES_FILE = "changes.patch"


def snapshot(folder: Path) -> None:
    """Replace `folder` by the current code. For a git checkout, add the commit and a patch of the changes since it."""
    shutil.rmtree(folder, ignore_errors=True)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    if (commit := code_version()) is None:
        return
    (folder / COMMIT_FILE).write_text(commit + "\n")
    if patch := changes():
        (folder / CHANGES_FILE).write_text(patch)
