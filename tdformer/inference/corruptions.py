"""Sums up an evaluation on a corruption suite: errors by kind and severity, and mCE against a baseline.

CE of a kind = sum of the errors at all severities / the same sum of the baseline
mCE          = mean of CE over all kinds, in percent                            [Hendrycks and Dietterich 2019]
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipelines.errors import UserError
from data_pipelines.formats.corruption_kinds import KINDS
from data_pipelines.storage.sealed_json import parse_json

NAME = re.compile(r"(?P<kind>.+)-(?P<severity>[1-5])")
"""How the data sets of a suite are called, such as gaussian_noise-3."""
Errors = dict[str, dict[int, float]]
"""Errors in percent, by kind and severity."""


def errors_of(data_sets: Sequence[dict[str, Any]]) -> Errors:
    """Return the errors of a suite. Data sets of other names are left out. Kinds are in the published order, then by name.

    Raises ValueError, KeyError or TypeError for what is no evaluation.
    """
    errors: Errors = {}
    for row in data_sets:
        if found := NAME.fullmatch(row["data_set"]):
            if not 0 <= (top1 := row["top1"]) <= 100:
                raise ValueError(f"a top-1 of {top1} percent")
            errors.setdefault(found["kind"], {})[int(found["severity"])] = 100 - top1
    return {kind: dict(sorted(errors[kind].items())) for kind in sorted(errors, key=published_place)}


def summary(data_sets: Sequence[dict[str, Any]], baseline: Errors | None = None) -> dict[str, Any]:
    """Return errors, their means by kind and over all kinds, and with a baseline the CE of each kind and mCE. Empty for no suite.

    Raises UserError if the baseline lacks a kind or a severity, or makes no error there.
    """
    errors = errors_of(data_sets)
    if not errors:
        return {}
    means = {kind: sum(values.values()) / len(values) for kind, values in errors.items()}
    result: dict[str, Any] = {"errors": errors, "mean_errors": means, "mean_error": sum(means.values()) / len(means)}
    if baseline is not None:
        ratios = {kind: 100 * _ratio(kind, values, baseline) for kind, values in errors.items()}
        result |= {"ce": ratios, "mce": sum(ratios.values()) / len(ratios)}
    return result


def read_baseline(path: Path) -> Errors:
    """Read the errors of a baseline from what `tdformer evaluate --suite --json` printed. Raises UserError."""
    try:
        return errors_of(parse_json(path.read_text())["data_sets"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(
            f"{path} is no result of a suite ({reason}); make one: tdformer evaluate RUN --suite SUITE --json > {path}"
        ) from None


def _ratio(kind: str, values: dict[int, float], baseline: Errors) -> float:
    others = baseline.get(kind, {})
    if lacking := sorted(values.keys() - others.keys()):
        raise UserError(f"the baseline was not evaluated on {kind}-{lacking[0]}; evaluate both on the same suite.")
    if not (total := sum(others[severity] for severity in values)):
        raise UserError(f"the baseline makes no error on {kind}, so there is no ratio to it; take a harder suite.")
    return sum(values.values()) / total


def published_place(kind: str) -> tuple[int, str]:
    """Return a key to sort kinds by: the published order, then others by name."""
    return KINDS.index(kind) if kind in KINDS else len(KINDS), kind
