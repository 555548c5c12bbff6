"""Says which keys of configurations decide about a result, and which differ between runs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import Any

from tdformer.config.dotted_keys import is_within
from tdformer.rundir.creation import CHANGEABLE
from tdformer.runs.flat_config import DATA_SETS, Flat, defaults, is_cut_off

ABSENT = "–"
"""The text for a key that a configuration does not have."""
SEED = "seed"
HARMLESS = (*(key for key in CHANGEABLE if key not in DATA_SETS), "name", "output", "data.shard_cache", "data.shard_cache_gb")
"""Keys that say where things lie, and how fast and how safely they run. They do not change the result. The data sets are not among
them: a resume may find them in another place, but another data set gives another result."""
COST_KEYS = ("training.zero_stage", "training.offload", "training.recompute")
"""Keys that do not change the result but explain the cost of a run."""


def is_harmless(key: str) -> bool:
    """Return whether a key does not change the result."""
    return is_within(key, HARMLESS)


def decides(key: str) -> bool:
    """Return whether runs that differ in this key are different experiments, and not one experiment with several seeds."""
    return key != SEED and not is_harmless(key)


def differing(configs: Sequence[Flat]) -> list[str]:
    """Return the keys whose values differ, in the order of the configuration.

    A section that is null in some runs is one difference, not one for each of its keys.
    """
    return [key for key in _in_order(configs) if _differs(key, configs)]


def value(flat: Flat, key: str) -> Any:
    """Return a value for people and for grouping.

    A data set is given by the end of its path, a section that exists as "on", and a missing key as ABSENT.
    """
    found = flat.get(key, ABSENT)
    if key in DATA_SETS and isinstance(found, str):
        return "/".join(PurePosixPath(found).parts[-2:])  # On another disk, …/mnist/train is the same data set.
    if key not in flat and any(other.startswith(f"{key}.") for other in flat):
        return "on"
    return found


def canonical(found: Any) -> str:
    """Return a text that is equal for values with the same meaning, such as 1 and 1.0."""
    return json.dumps(float(found) if isinstance(found, int) and not isinstance(found, bool) else found, default=str, sort_keys=True)


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Return a short name for each key: its last part, or as many of its last parts as make it unique."""
    keys, names = list(keys), {}
    for key in keys:
        parts = key.split(".")
        tails = (".".join(parts[-n:]) for n in range(1, len(parts) + 1))
        names[key] = next(tail for tail in tails if sum(f".{other}".endswith(f".{tail}") for other in keys) == 1 or tail == key)
    return names


def _differs(key: str, configs: Sequence[Flat]) -> bool:
    if configs and key in configs[0] and all(key in flat and flat[key] == configs[0][key] for flat in configs):
        return False  # This finds most keys at once, with the same result as the lines below.
    if len({canonical(value(flat, key)) for flat in configs if key in flat}) > 1:
        return True
    return any(key not in flat and not is_cut_off(key, flat) for flat in configs)


def _in_order(configs: Sequence[Flat]) -> list[str]:
    """Return all keys in the order of the configuration. A section that is null in some runs comes before its keys in others."""
    keys = list(dict.fromkeys(key for flat in (defaults(), *configs) for key in flat))
    place = {key: index for index, key in enumerate(keys)}
    firsts = {key: next((place[other] for other in keys if other.startswith(f"{key}.")), place[key]) for key in keys[len(defaults()) :]}
    return sorted(keys, key=lambda key: (firsts.get(key, place[key]), key.count(".")))
