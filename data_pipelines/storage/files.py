"""Writes files that no reader ever sees half-written, and hashes files."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file in the same folder, then rename it to `path`. A reader never sees a half-written file."""
    partial = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        write(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def unshare(path: Path) -> None:
    """Give a file an inode of its own if it has other names (`cp -l`), so that what is appended comes to this one alone. Raises OSError."""
    if path.exists() and path.stat().st_nlink > 1:
        replace_file(path, lambda partial: shutil.copy2(path, partial))


def append_line(path: Path, line: str) -> None:
    """Append a line to a text file, and sync it to the disk. A last line that a crash cut off is ended first. Raises OSError."""
    unshare(path)
    with path.open("a+b") as file:
        is_cut_off = file.seek(0, os.SEEK_END) > 0 and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n"
        file.write(b"\n" * is_cut_off + line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def sha256(path: Path) -> str:
    """Hash a file with SHA-256, and return the digest in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
