"""Reads the configurations of many runs quickly, as flat keys."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import yaml

from data_pipelines.config import DataConfig
from tdformer.config import RunConfig
from tdformer.config.dotted_keys import flatten
from tdformer.config.yaml_io import UNREADABLE

Flat = Mapping[str, Any]
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml reads 500 configurations in 0.3 s. Validating them too, as load_config does, would take seconds."""
TOP_KEY = re.compile(r"^(?=[A-Za-z_])", re.MULTILINE)
"""This matches before every key of the top level."""
DATA_SETS = ("data.train", "data.val")
"""The keys that name data sets."""


def read_flat(path: Path) -> dict[str, Any]:
    """Read a resolved configuration as {"training.epochs": 15, …}, without validation.

    Raises ValueError if the file is no configuration, and OSError.
    """
    text = path.read_text(encoding="utf-8")
    flat: dict[str, Any] = {}
    for section in TOP_KEY.split(text):
        found = _section(section)
        if found is None:  # The file was not written by this project, so it is parsed as a whole.
            return with_defaults(_whole(text))
        flat |= found
    return with_defaults(flat or _whole(text))


def _whole(text: str) -> dict[str, Any]:
    try:
        tree = yaml.load(text, Loader=Loader)
    except UNREADABLE as error:
        raise ValueError(" ".join(str(error).split())) from None
    if not isinstance(tree, dict):
        raise ValueError("it holds no sections")
    return flat_tree(tree)


@lru_cache(maxsize=10_000)
def _section(text: str) -> dict[str, Any] | None:
    """Parse one key of the top level with all below it. Most sections are equal in all runs, and are parsed once.

    Return None if the text cannot be parsed on its own.
    """
    try:
        tree = yaml.load(text, Loader=Loader)
    except UNREADABLE:
        return None
    return flat_tree(tree) if isinstance(tree, dict) and len(tree) == 1 else None if text.strip() else {}


def flat_tree(tree: dict[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested dictionaries as one dictionary with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flat_tree(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


@cache
def defaults() -> dict[str, Any]:
    """Return the default value of every key that has one."""
    flat = flatten(RunConfig(name="none", data=DataConfig(train="none", val="none")))
    return {key: value for key, value in flat.items() if key not in ("name", *DATA_SETS)}


def with_defaults(flat: dict[str, Any]) -> dict[str, Any]:
    """Add the defaults of keys that did not exist yet when the run was trained. A section that is null gets no keys."""
    return {key: value for key, value in defaults().items() if key not in flat and not is_cut_off(key, flat)} | flat


def is_cut_off(key: str, flat: Flat) -> bool:
    """Return whether a section that would hold the key is null."""
    parts = key.split(".")
    return any(".".join(parts[:n]) in flat for n in range(1, len(parts)))
