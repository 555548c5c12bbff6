"""JSON files of results that carry a checksum of their content, so that a damaged or edited one is never taken for a result."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from data_pipelines.storage.files import replace_file

SEAL = "sha256"


def write_sealed(path: Path, tree: dict[str, Any]) -> None:
    """Write a tree with its checksum. Lists of numbers stay on one line. Raises OSError."""
    text = json.dumps({**tree, SEAL: _checksum(tree)}, indent=1)
    text = re.sub(r"\[[^\[\]{}]*\]", lambda found: " ".join(found[0].split()), text)
    replace_file(path, lambda partial: partial.write_text(f"{text}\n", encoding="utf-8"))


def read_sealed(path: Path) -> dict[str, Any]:
    """Read what write_sealed wrote. Other line breaks and indents do not matter. Raises OSError, and ValueError for other content."""
    tree = parse_json(path.read_text(encoding="utf-8"))
    if not isinstance(tree, dict) or SEAL not in tree:
        raise ValueError("it has no checksum")
    if tree.pop(SEAL) != _checksum(tree):
        raise ValueError("it was changed after it was written")
    return tree


def parse_json(text: str) -> Any:
    """Parse JSON. Raises ValueError, for a tree that is too deep for Python too."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("its brackets are too deep") from None


def _checksum(tree: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()
