"""The configurations of many runs as flat keys: which keys decide about a result, and which differ."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from data_pipelines.config import DataConfig
from tdformer.config import RunConfig
from tdformer.config.dotted_keys import flatten, is_within
from tdformer.config.yaml_io import UNREADABLE
from tdformer.rundir.creation import CHANGEABLE

Flat = Mapping[str, Any]
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml reads 500 configurations in 0.3 s; checking them as well, as load_config does, would take seconds."""

ABSENT = "–"
TOP_KEY = re.compile(r"^(?=[A-Za-z_])", re.MULTILINE)
SEED = "seed"
DATA_SETS = ("data.train", "data.val")
HARMLESS = (*(key for key in CHANGEABLE if key not in DATA_SETS), "name", "output", "data.shard_cache", "data.shard_cache_gb")
"""Where things lie, how fast and how safely they run. The data sets are not among them: a resume may find them elsewhere, but they are
what was learnt from."""
OF_COST = ("training.zero_stage", "training.offload", "training.recompute")
"""Harmless to the result, and worth seeing beside what a run cost."""


def read_flat(path: Path) -> dict[str, Any]:
    """{"training.epochs": 15, …} of a resolved configuration, unchecked. Raises ValueError for what is none, and OSError."""
    text = path.read_text()
    flat: dict[str, Any] = {}
    for section in TOP_KEY.split(text):
        found = _section(section)
        if found is None:  # no file of ours
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
    """One key of the top level with all below it: most are the same in all runs, and are parsed once. None if it does not stand alone."""
    try:
        tree = yaml.load(text, Loader=Loader)
    except UNREADABLE:
        return None
    return flat_tree(tree) if isinstance(tree, dict) and len(tree) == 1 else None if text.strip() else {}


def flat_tree(tree: dict[Any, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flat_tree(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


@cache
def defaults() -> dict[str, Any]:
    """Of all keys that have one."""
    flat = flatten(RunConfig(name="none", data=DataConfig(train="none", val="none")))
    return {key: value for key, value in flat.items() if key not in ("name", *DATA_SETS)}


def with_defaults(flat: dict[str, Any]) -> dict[str, Any]:
    """Keys that are younger than the run had their default's effect. A section that is null has no keys."""
    return {key: value for key, value in defaults().items() if key not in flat and not _is_cut_off(key, flat)} | flat


def is_harmless(key: str) -> bool:
    return is_within(key, HARMLESS)


def decides(key: str) -> bool:
    """Whether runs that differ in this key are different experiments, rather than one experiment with several seeds."""
    return key != SEED and not is_harmless(key)


def differing(configs: Sequence[Flat]) -> list[str]:
    """Keys whose values are not all the same, in the order of the configuration. A section that some runs lack (null) is one
    difference, not one for each of its keys."""
    return [key for key in _in_order(configs) if _differs(key, configs)]


def value(flat: Flat, key: str) -> Any:
    """For people and for grouping: a data set by the end of its path, a section that is there as "on", what is not there as ABSENT."""
    found = flat.get(key, ABSENT)
    if key in DATA_SETS and isinstance(found, str):
        return "/".join(PurePosixPath(found).parts[-2:])  # …/mnist/train is the same data set on another disk
    if key not in flat and any(other.startswith(f"{key}.") for other in flat):
        return "on"
    return found


def canonical(found: Any) -> str:
    """Equal for values that mean the same."""
    return json.dumps(float(found) if isinstance(found, int) and not isinstance(found, bool) else found, default=str, sort_keys=True)


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """The last part of each key; as many as it takes to tell them apart."""
    keys, names = list(keys), {}
    for key in keys:
        parts = key.split(".")
        tails = (".".join(parts[-n:]) for n in range(1, len(parts) + 1))
        names[key] = next(tail for tail in tails if sum(f".{other}".endswith(f".{tail}") for other in keys) == 1 or tail == key)
    return names


def _differs(key: str, configs: Sequence[Flat]) -> bool:
    if configs and key in configs[0] and all(key in flat and flat[key] == configs[0][key] for flat in configs):
        return False  # the same as below, for most keys, at once
    if len({canonical(value(flat, key)) for flat in configs if key in flat}) > 1:
        return True
    return any(key not in flat and not _is_cut_off(key, flat) for flat in configs)


def _is_cut_off(key: str, flat: Flat) -> bool:
    """Whether a section that would hold the key is null."""
    parts = key.split(".")
    return any(".".join(parts[:n]) in flat for n in range(1, len(parts)))


def _in_order(configs: Sequence[Flat]) -> list[str]:
    """As the configuration has them; a section that is null in some runs before its keys in others."""
    keys = list(dict.fromkeys(key for flat in (defaults(), *configs) for key in flat))
    place = {key: index for index, key in enumerate(keys)}
    firsts = {key: next((place[other] for other in keys if other.startswith(f"{key}.")), place[key]) for key in keys[len(defaults()) :]}
    return sorted(keys, key=lambda key: (firsts.get(key, place[key]), key.count(".")))
