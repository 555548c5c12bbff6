"""Finds the configurations that come with the program, by names such as cifar10/tdformer_hst4_384."""

from __future__ import annotations

import re
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "recipes"
"""The folder configs/ of the source tree, by a link. An installed program has a copy of it here."""
NO_RUNS = ("studies", "clusters")
"""Subfolders whose files are no runs."""


def names() -> list[str]:
    """Return the names of all configurations of runs, sorted."""
    found = (path.relative_to(FOLDER).with_suffix("") for path in FOLDER.rglob("*.yaml"))
    return sorted(str(path) for path in found if path.parts[0] not in NO_RUNS)


def path_of(name: str) -> Path:
    """Return the file of a configuration that comes with the program."""
    return FOLDER / f"{name}.yaml"


def find_config(path: Path) -> Path:
    """Return the path if there is anything, or else the configuration that comes with the program under this name."""
    name = str(path).removesuffix(".yaml")
    return path_of(name) if not path.exists() and name in names() else path


def aim_of(path: Path) -> float | None:
    """Return the top-1 accuracy in % that a configuration says it aims at, in the comment at its top. None if it says none."""
    aim = re.search(r"^# +aims at +(\d+\.\d+) % top-1", path.read_text(encoding="utf-8"), re.MULTILINE)
    return float(aim[1]) if aim else None
