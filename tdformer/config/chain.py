"""Finds the chain of trainings that a configuration is the last of, by the key `after` of each file."""

from __future__ import annotations

from pathlib import Path

from tdformer.config.shipped import find_config
from tdformer.config.yaml_io import AFTER, ConfigError, read_with_base


def chain_of(path: Path) -> list[Path]:
    """Return the files of a chain, the first training first. A file without `after` is a chain of one.

    path: a file, or the name of a configuration that comes with the program. Raises ConfigError for a file that is missing, and for a
    chain that comes back to one of its files.
    """
    chain = [find_config(path)]
    while (before := read_with_base(chain[0]).get(AFTER)) is not None:
        if not isinstance(before, str) or not before:
            raise ConfigError(
                f"configuration {chain[0]}: {AFTER} must be the name of a YAML file, from the folder of this one, got {before!r}"
            )
        place = chain[0].parent / before
        if place.resolve() in {file.resolve() for file in chain}:
            raise ConfigError(f"configuration {chain[0]}: {AFTER} is {before}, which itself comes after this one; name an earlier training")
        chain.insert(0, place)
    return chain
