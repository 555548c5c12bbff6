"""One run as one row: for `list`, for JSON, for a terminal."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from data_pipelines.errors import UserError
from tdformer.config.yaml_io import did_you_mean
from tdformer.runs import configs
from tdformer.runs.comparing import Comparison, Group, Outcome, Spread, outcome
from tdformer.runs.reading import Run


def as_row(run: Run, metrics: Iterable[str]) -> dict[str, Any]:
    """For programs: numbers as they are, None where there is none."""
    return {
        "name": run.name,
        "path": str(run.path),
        "state": run.state,
        "step": run.last.step if run.last else None,
        "epoch": run.last.epoch if run.last else None,
        "epochs": run.config.get("training.epochs"),
        "metrics": {metric: _outcome(outcome(run, metric)) for metric in metrics},
        "images_per_s": run.images_per_s,
        "gpu_hours": run.gpu_hours,
        "cpu_process_hours": run.cpu_process_hours,
        "last_written": run.changed or None,
        "notes": run.notes,
    }


def as_tree(comparison: Comparison) -> dict[str, Any]:
    """A comparison for programs."""
    configured = {run: {key: configs.value(run.config, key) for key in comparison.differing} for run in comparison.runs}
    return {
        "metrics": comparison.metrics,
        "differing": comparison.differing,
        "settings": [_group(group, comparison) for group in comparison.groups],
        "runs": [{**as_row(run, comparison.metrics), "config": configured[run]} for run in comparison.runs],
        "paper": [vars(row) for row in comparison.references],
    }


def without_nan(tree: Any) -> Any:
    """JSON knows no NaN and no infinity."""
    if isinstance(tree, dict):
        return {key: without_nan(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [without_nan(value) for value in tree]
    return str(tree) if isinstance(tree, float) and tree - tree != 0 else tree


def filtered(runs: Sequence[Run], conditions: Sequence[str]) -> list[Run]:
    """Runs for which every KEY=VALUE holds; `state` is a key too. Raises UserError for what is no condition, or a key of no run."""
    kept, known = list(runs), {"state", *(key for run in runs for key in run.config)}
    for condition in conditions:
        key, equals, text = condition.partition("=")
        if not (key and equals):
            raise UserError(f"--filter {condition!r} is not of the form section.key=value, or state=…")
        if runs and key not in known:
            raise UserError(f"--filter {condition!r}: no run has a key {key}{did_you_mean(key, known)}")
        kept = [run for run in kept if _is(run.state if key == "state" else run.config.get(key, _NO_VALUE), text)]
    return kept


_NO_VALUE = object()


def _is(found: Any, text: str) -> bool:
    """Whether a value is what was typed: 3e-4, null and [1, 2] are JSON, the rest is text."""
    try:
        wanted = json.loads(text)
    except ValueError:
        wanted = text
    return found is not _NO_VALUE and (found == wanted if isinstance(found, bool) is isinstance(wanted, bool) else False)


def _outcome(found: Outcome | None) -> dict[str, Any] | None:
    return {"best": found.best._asdict(), "last": found.last._asdict()} if found else None


def _spread(found: Spread | None) -> dict[str, Any] | None:
    return {"mean": found.mean, "standard_deviation": found.deviation, "runs": found.count} if found else None


def _group(group: Group, comparison: Comparison) -> dict[str, Any]:
    spreads = {name: {which: _spread(group.spread(name, which)) for which in ("best", "last")} for name in comparison.metrics}
    runs = [comparison.names[run] for run in group.runs]
    return {"setting": group.setting, "runs": runs, "seeds": group.seeds, "metrics": spreads, "notes": group.notes}
