"""Converts runs and comparisons to dictionaries for JSON."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tdformer.runs import config_keys
from tdformer.runs.comparison import Comparison, Group, Outcome, Spread, outcome, to_reference
from tdformer.runs.paired import differences
from tdformer.runs.run import Run


def run_as_dict(run: Run, metrics: Iterable[str]) -> dict[str, Any]:
    """Return one run with the best and the last value of each metric. A value that does not exist is None."""
    return {
        "name": run.name,
        "path": str(run.path),
        "state": run.state,
        "step": run.last.step if run.last else None,
        "epoch": run.last.epoch if run.last else None,
        "epochs": run.config.get("training.epochs"),
        "metrics": {metric: _outcome(outcome(run, metric)) for metric in metrics},
        "to_reference": to_reference(run),
        "images_per_s": run.images_per_s,
        "gpu_hours": run.gpu_hours,
        "cpu_process_hours": run.cpu_process_hours,
        "last_written": run.changed or None,
        "notes": run.notes,
    }


def comparison_as_dict(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison: metrics, keys that differ, settings, runs and numbers of the paper.

    paired: by metric, the difference of each setting to the first one, seed by seed. `setting` is its place among the settings.
    """
    configured = {run: {key: config_keys.value(run.config, key) for key in comparison.differing} for run in comparison.runs}
    return {
        "metrics": comparison.metrics,
        "differing": comparison.differing,
        "settings": [_group(group, comparison) for group in comparison.groups],
        "runs": [{**run_as_dict(run, comparison.metrics), "config": configured[run]} for run in comparison.runs],
        "paired": {
            metric: [{"setting": place, **vars(pair)} for place, pair in differences(comparison, metric)] for metric in comparison.metrics
        },
        "paper": [vars(row) for row in comparison.references],
    }


def without_nan(tree: Any) -> Any:
    """Return the tree with text in place of NaN and infinity, which JSON does not have."""
    if isinstance(tree, dict):
        return {key: without_nan(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [without_nan(value) for value in tree]
    return str(tree) if isinstance(tree, float) and tree - tree != 0 else tree


def _outcome(found: Outcome | None) -> dict[str, Any] | None:
    return {"best": found.best._asdict(), "last": found.last._asdict()} if found else None


def _spread(found: Spread | None) -> dict[str, Any] | None:
    return {"mean": found.mean, "standard_deviation": found.deviation, "runs": found.count} if found else None


def _group(group: Group, comparison: Comparison) -> dict[str, Any]:
    spreads = {name: {which: _spread(group.spread(name, which)) for which in ("best", "last")} for name in comparison.metrics}
    runs = [comparison.names[run] for run in group.runs]
    return {"setting": group.setting, "runs": runs, "seeds": group.seeds, "metrics": spreads, "notes": group.notes}
