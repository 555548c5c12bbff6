"""TODO."""

from __future__ import annotations

from pathlib import Path


def prepare_again(folder: Path | str) -> str:
    """The remedy for a set that is not whole."""
    return f"copy it again, or remove {folder} and prepare it again"


def index_again(folder: Path | str) -> str:
    """The same for one whose shards lie elsewhere, where they stay. `folder` holds none of them: indexing sees to that."""
    return f"put back what was indexed, or index it again: remove {folder} (no shard lies in it) and give its `tdformer data index` again"
