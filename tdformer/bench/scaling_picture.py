"""Keeps results of `bench scaling` in a folder, and draws what communication adds to a step by number of ranks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipelines.errors import UserError
from data_pipelines.storage.files import replace_file
from tdformer.bench.scaling_names import ALONE, CANDIDATES
from tdformer.pages import svg_charts, svg_files
from tdformer.pages.svg_charts import Curve

SETTING = ("device", "scaling", "image_size", "embed_dims", "forward_s", "backward_s", "mbit_per_s")
"""What results must have in common to be points of one picture."""


def keep(results: Sequence[dict[str, Any]], folder: Path) -> None:
    """Write results into `folder`/scaling.json, and draw `folder`/scaling.svg. A result that is there for as many ranks is replaced.

    Raises UserError if the folder holds results of another setting, and OSError.
    """
    path = folder / "scaling.json"
    folder.mkdir(parents=True, exist_ok=True)
    kept = {_ranks(result): result for result in _read(path)}
    for result in results:
        for other in kept.values():
            if differing := [key for key in SETTING if result["conditions"].get(key) != other["conditions"].get(key)]:
                raise UserError(f"{path} holds results with another {differing[0].replace('_', ' ')}; choose another --out.")
        kept[_ranks(result)] = result
    ordered = [kept[ranks] for ranks in sorted(kept)]
    replace_file(path, lambda partial: partial.write_text(json.dumps({"results": ordered}, indent=1) + "\n"))
    if picture := draw(ordered):
        replace_file(folder / "scaling.svg", lambda partial: partial.write_text(picture))


def draw(results: Sequence[dict[str, Any]]) -> str | None:
    """Draw the seconds that each candidate adds to a step, over the number of ranks, as SVG. None if there is nothing to draw."""
    rows = [row for result in results for row in result["rows"] if row["candidate"] != ALONE]
    lines = [
        Curve([(row["ranks"], row["added_s"]) for row in rows if row["candidate"] == name], name, f"c{place % 8}", name, is_mean=True)
        for place, name in enumerate(CANDIDATES)
    ]
    picture = svg_charts.curves([line for line in lines if line.points], "ranks")
    return svg_files.standalone(picture) if picture else None


def _ranks(result: dict[str, Any]) -> int:
    return result["rows"][0]["ranks"]


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        return json.loads(path.read_text())["results"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} holds no results of tdformer bench scaling ({error}); choose another --out.") from None
