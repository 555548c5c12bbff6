"""Combines the values of --sweep into runs, each of which is there once."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence

from data_pipelines.errors import UserError
from tdformer.config import RunConfig
from tdformer.config.yaml_io import ConfigError, parse_override

REPLACED = "output"
"""The key that a sweep sets itself: its runs lie in one folder."""


def combinations(sweeps: Sequence[str], overrides: Sequence[str] = ()) -> Iterator[list[str]]:
    """Yield the overrides of each run: every value of each key with every value of all other keys.

    sweeps: texts of the form KEY=[VALUE, …]. overrides: those of all runs. Raises ConfigError for a key that is given twice.
    """
    choices, keys = [], {parse_override(override)[0] for override in overrides}
    for sweep in sweeps:
        key, values = parse_override(sweep)
        if not isinstance(values, list) or not values:
            raise ConfigError(f"--sweep {sweep!r} is not of the form section.key=[value, value, …]")
        if key in keys:
            raise ConfigError(f"--sweep {sweep!r}: {key} is given twice; give all its values in one --sweep, and nowhere else")
        if key == REPLACED:
            raise ConfigError(f"--sweep {sweep!r}: the runs of a sweep lie in one folder; give {REPLACED}=FOLDER without --sweep")
        keys.add(key)
        choices.append([f"{key}={json.dumps(value)}" for value in values])
    yield from map(list, itertools.product(*choices))


def check_different(configs: Sequence[RunConfig], changes: Sequence[list[str]]) -> None:
    """Raise UserError if two runs would be the same: 1 and 1.0, for example, are one value."""
    known: dict[str, list[str]] = {}
    for config, change in zip(configs, changes, strict=True):
        same = known.setdefault(config.model_dump_json(), change)
        if same is not change:
            raise UserError(f"--sweep asks for the same run twice ({' '.join(same)} and {' '.join(change)}); give every value once.")
