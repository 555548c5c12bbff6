"""Selects runs by conditions on their configuration and state."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from data_pipelines.errors import UserError
from tdformer.config.yaml_io import did_you_mean
from tdformer.runs.run import Run

_NO_VALUE = object()


def filtered(runs: Sequence[Run], conditions: Sequence[str]) -> list[Run]:
    """Return the runs for which every condition KEY=VALUE holds. `state` is a key too.

    Raises UserError for a condition of another form, or for a key that no run has.
    """
    kept, known = list(runs), {"state", *(key for run in runs for key in run.config)}
    for condition in conditions:
        key, equals, text = condition.partition("=")
        if not (key and equals):
            raise UserError(f"--filter {condition!r} is not of the form section.key=value, or state=…")
        if runs and key not in known:
            raise UserError(f"--filter {condition!r}: no run has a key {key}{did_you_mean(key, known)}")
        kept = [run for run in kept if _equals(run.state if key == "state" else run.config.get(key, _NO_VALUE), text)]
    return kept


def _equals(found: Any, text: str) -> bool:
    """Return whether a value is the typed one. 3e-4, null and [1, 2] are read as JSON, everything else as text."""
    try:
        wanted = json.loads(text)
    except ValueError:
        wanted = text
    return found is not _NO_VALUE and (found == wanted if isinstance(found, bool) is isinstance(wanted, bool) else False)
