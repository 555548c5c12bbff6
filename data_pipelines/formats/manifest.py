"""The manifest of a data set: the truth about what belongs to it."""

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
VERSION_ELSEWHERE = 3
"""The same with `shards_at`. A program that does not know that field would look for the shards in the wrong place."""
UNFINISHED = ".unfinished"
"""The folder of what is not whole yet: parts that were written, and their records."""
RECIPE = "recipe.json"
"""In that folder: what is being made, and how."""
Kind = Literal["images", "events"]
Format = Literal["wds", "ffcv"]
"""wds: WebDataset tar shards; ffcv: one FFCV file."""


@dataclass(frozen=True)
class Manifest:
    """What belongs to a data set.

    blocks: samples that were stored together, in the order of storage; shuffling by blocks moves within them. WebDataset: the
    shards' samples. digest: of the samples' keys in their order, the same in every format. recipe: what the set was made from
    and how, for a repeated `data prepare` to compare. left_out: how many files were no whole image. shards_at: the folder or URL
    of shards that others wrote and `data index` has read; None: they lie beside the manifest.
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
        return sum(shard.samples for shard in self.shards)

    def remedy(self, folder: Path | str) -> str:
        """What to do about damage. Shards that lie elsewhere are the user's own: nothing may advise to remove them."""
        return index_again(folder) if self.shards_at else prepare_again(folder)

    def write(self, folder: Path) -> None:
        content = {"version": VERSION_ELSEWHERE if self.shards_at else MANIFEST_VERSION, **asdict(self)}
        if not self.shards_at:
            del content["shards_at"]
        replace_file(folder / MANIFEST, lambda path: path.write_text(json.dumps(content, indent=1)))
