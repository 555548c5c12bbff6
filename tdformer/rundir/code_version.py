"""Which code this is: the commit of the checkout, or of the copy that a job runs."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("tdformer", "data_pipelines", "launch")
COMMIT_FILE = "COMMIT"
"""In a copy of the packages: what `code_version` was when it was made."""


def code_version() -> str | None:
    """The commit, followed by " changed" if the packages were edited since; None where there is no record of it."""
    if (ROOT / COMMIT_FILE).exists():
        return (ROOT / COMMIT_FILE).read_text().strip() or None
    if not (ROOT / ".git").exists() or (commit := git("rev-parse", "HEAD")) is None:
        return None
    return commit.strip() + (" changed" if git("status", "--porcelain", "--", *PACKAGES) else "")


def changes() -> str:
    """What differs from the commit, as a patch; empty if nothing does."""
    return git("diff", "HEAD", "--", *PACKAGES) or ""


def git(*arguments: str) -> str | None:
    """What git prints in the checkout; None if it fails, or is not there."""
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=30)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
