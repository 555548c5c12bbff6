"""Defines the manifest of a data set, the file that says what belongs to it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from data_pipelines.formats.remedies import index_again, prepare_again
from data_pipelines.storage.files import replace_file
from data_pipelines.storage.shard_info import ShardInfo

MANIFEST = "manifest.json"
MANIFEST_VERSION = 2
VERSION_WITH_SHARDS_AT = 3
"""The version of a manifest with `shards_at`. An older program ignores that field and would look for the shards elsewhere."""
UNFINISHED = ".unfinished"
"""Name of the folder that holds the parts and records of a data set while it is written."""
RECIPE = "recipe.json"
"""Name of the file in that folder that says how the data set is made."""

Kind = Literal["images", "events"]

Format = Literal["wds", "ffcv"]
"""wds: WebDataset tar shards; ffcv: one FFCV file."""


@dataclass(frozen=True)
class Manifest:
    """The description of a complete data set.

    blocks: sizes of the groups of samples that were stored together, in storage order. Block shuffling moves samples within them.
        A block of a WebDataset is a shard.
    digest: hash of the samples' keys and their order. It is the same in every format.
    recipe: what the data set was made from, and how. A repeated `prepare_dataset` compares it.
    left_out: number of damaged files that are not in the data set.
    shards_at: folder or URL of shards that others wrote and `index_shards` indexed. None: the shards lie beside the manifest.
    """

    format: Format
    kind: Kind
    classes: list[str]
    shards: list[ShardInfo]
    blocks: list[int]
    digest: str
    recipe: dict[str, Any]
    left_out: int = 0
    shards_at: str | None = None

    @property
    def samples(self) -> int:
        """The number of samples in the data set."""
        return sum(shard.samples for shard in self.shards)

    def remedy(self, folder: Path | str) -> str:
        """The advice for a damaged data set. Shards that others wrote are the user's own, so no advice tells to remove them."""
        return index_again(folder) if self.shards_at else prepare_again(folder)

    def write(self, folder: Path) -> None:
        """Write the manifest file. Raises OSError."""
        content = {"version": VERSION_WITH_SHARDS_AT if self.shards_at else MANIFEST_VERSION, **asdict(self)}
        if not self.shards_at:
            del content["shards_at"]
        replace_file(folder / MANIFEST, lambda path: path.write_text(json.dumps(content, indent=1)))
