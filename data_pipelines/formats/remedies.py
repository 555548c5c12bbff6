"""Words the advice that error messages give for a damaged data set."""

from __future__ import annotations

from pathlib import Path


def prepare_again(folder: Path | str) -> str:
    """The advice for a data set that `prepare_dataset` wrote."""
    return f"copy it again, or remove {folder} and prepare it again"


def index_again(folder: Path | str) -> str:
    """The advice for an indexed data set. Removing `folder` loses no shard: indexing never writes into the folder of the shards."""
    return f"put back what was indexed, or index it again: remove {folder} (no shard lies in it) and give its `tdformer data index` again"
