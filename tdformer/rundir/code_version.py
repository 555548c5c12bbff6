"""Finds out which code runs: the commit of the checkout, or of the copy that a job runs."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("tdformer", "data_pipelines", "launch")
COMMIT_FILE = "COMMIT"
"""A file in a copy of the packages, which holds the `code_version` of the original."""


def code_version() -> str | None:
    """Return the commit, followed by " changed" if the packages were edited since, or None if nothing records it."""
    if (ROOT / COMMIT_FILE).exists():
        return (ROOT / COMMIT_FILE).read_text().strip() or None
    if not (ROOT / ".git").exists() or (commit := git("rev-parse", "HEAD")) is None:
        return None
    return commit.strip() + (" changed" if git("status", "--porcelain", "--", *PACKAGES) else "")


def changes() -> str:
    """Return the differences from the commit as a patch. It is empty if there are none."""
    return git("diff", "HEAD", "--", *PACKAGES) or ""


def git(*arguments: str) -> str | None:
    """Run git in the checkout and return what it prints, or None if it fails or is not installed."""
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=30)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
