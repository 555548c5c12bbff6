"""Finds the chain of trainings that a configuration is the last of, by the key `after` of each file."""

from __future__ import annotations

from pathlib import Path

from tdformer.config.shipped import find_config
from tdformer.config.yaml_io import AFTER, ConfigError, named_file, read_with_base


def chain_of(path: Path) -> list[Path]:
    """Return the files of a chain, the first training first. A file without `after` is a chain of one.

    path: a file, or the name of a configuration that comes with the program. Raises ConfigError for a file that is missing, and for a
    chain that comes back to one of its files.
    """
    chain = [find_config(path)]
    while AFTER in (tree := read_with_base(chain[0])):
        before = named_file(chain[0], AFTER, tree[AFTER])
        if any(before.samefile(file) for file in chain):
            raise ConfigError(
                f"configuration {chain[0]}: {AFTER} is {tree[AFTER]}, which itself comes after this one; name an earlier training"
            )
        chain.insert(0, before)
    return chain
