"""A copy of the code in the run directory: a job that waits, or comes back, runs what was submitted, whatever is edited meanwhile."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("tdformer", "data_pipelines", "launch")
COMMIT_FILE, CHANGES_FILE = "COMMIT", "changes.patch"


def snapshot(folder: Path) -> None:
    """Replace `folder` by the code as it is now; with the commit and what differs from it, where it is a git checkout."""
    shutil.rmtree(folder, ignore_errors=True)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    if not (ROOT / ".git").exists() or (commit := _git("rev-parse", "HEAD")) is None:
        return
    changes = _git("diff", "HEAD", "--", *PACKAGES) or ""
    (folder / COMMIT_FILE).write_text(commit.strip() + (" changed" if changes else "") + "\n")
    if changes:
        (folder / CHANGES_FILE).write_text(changes)


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None
