"""Finds the corrupted copies of samples in a corruption suite."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from data_pipelines.errors import UserError
from data_pipelines.loading.dataset import DataSet
from tdformer.analysis.samples import Samples
from tdformer.inference.corruptions import NAME, published_place
from tdformer.inference.evaluate import data_sets_in

CLEAN = "clean"
"""The name of the samples themselves, beside those of their copies."""


def of_keys(samples: Samples, keys: Sequence[str]) -> Samples:
    """Return the samples with these keys in place of the chosen ones, in this order. Raises UserError for an unknown key."""
    known = samples.data.index.rows["key"]
    encoded = np.array([key.encode("utf-8", "surrogateescape") for key in keys])
    if unknown := [key for key, is_known in zip(keys, np.isin(encoded, known), strict=True) if not is_known]:
        raise UserError(f"{samples.data.location} has no sample with key {unknown[0]}; its first one is {samples.data.index.key_of(0)}.")
    return _with_keys(samples, samples.data, encoded)


def with_copies(samples: Samples, suite: Path, open_copy: Callable[[str], DataSet]) -> dict[str, Samples]:
    """Return those of the samples that are in a suite as CLEAN, and for each kind of corruption their copies, in the same order.

    Samples are found by their keys. Of each kind the middle severity is taken. Raises UserError if a set of the suite has none of them.
    """
    copies = {name: open_copy(str(path)) for name, path in _middle_severities(suite).items()}
    keys = samples.data.index.rows["key"][samples.chosen]
    for data in copies.values():
        keys = keys[np.isin(keys, data.index.rows["key"])]
    if not len(keys):
        raise UserError(f"{suite} has no sample of {samples.data.location}; make one of that set: tdformer data corrupt SET SUITE")
    return {CLEAN: _with_keys(samples, samples.data, keys), **{name: _with_keys(samples, data, keys) for name, data in copies.items()}}


def _with_keys(samples: Samples, data: DataSet, keys: np.ndarray) -> Samples:
    order = np.argsort(data.index.rows["key"], kind="stable")
    return replace(samples, data=data, chosen=order[np.searchsorted(data.index.rows["key"], keys, sorter=order)])


def _middle_severities(suite: Path) -> dict[str, Path]:
    """Return one set of each kind, by a name such as fog-3. Raises UserError if there is none."""
    found: dict[str, list[tuple[int, Path]]] = defaultdict(list)
    for path in data_sets_in(suite):
        if match := NAME.fullmatch(path.name):
            found[match["kind"]].append((int(match["severity"]), path))
    if not found:
        raise UserError(f"{suite} holds no set that is called KIND-SEVERITY, such as fog-3; make a suite: tdformer data corrupt SET SUITE")
    middle = {kind: sorted(found[kind])[len(found[kind]) // 2] for kind in sorted(found, key=published_place)}
    return {f"{kind}-{severity}": path for kind, (severity, path) in middle.items()}
