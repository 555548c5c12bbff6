"""Compares runs: what differs in their configurations, their results, and mean and deviation over several seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from data_pipelines.errors import UserError
from tdformer.config.yaml_io import did_you_mean
from tdformer.runs import config_keys, paper_results
from tdformer.runs.metric_rows import Point
from tdformer.runs.run import Run

TOP1, EMA, LOSS = "val/top1", "val/top1_ema", "val/loss"
REFERENCE = "reference/val_top1"
"""The top-1 of training.reference after as many epochs. It stands beside each evaluation."""


@dataclass(frozen=True)
class Outcome:
    """The best and the last point of one metric in one run."""

    best: Point
    last: Point


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over runs."""

    mean: float
    deviation: float | None
    """The sample standard deviation. None for a single run."""
    count: int


@dataclass(frozen=True)
class Group:
    """The runs of one experiment. They differ only in the seed and in keys that do not change the result."""

    runs: list[Run]
    """The runs, best first."""
    setting: dict[str, Any]
    """The values of this group for the keys that differ between groups."""

    @property
    def seeds(self) -> list[Any]:
        """The seed of each run."""
        return [run.config.get(config_keys.SEED) for run in self.runs]

    @property
    def notes(self) -> list[str]:
        """Remarks on the runs that their mean does not show."""
        unfinished = sum(run.state != "finished" for run in self.runs)
        twice = len(self.runs) - len(set(map(str, self.seeds)))
        remarks = [(unfinished, f"{unfinished} not finished"), (twice, f"{twice + 1} runs share a seed" if twice else "")]
        return [text for is_so, text in remarks if is_so] if len(self.runs) > 1 else []

    def spread(self, metric: str, which: str = "best") -> Spread | None:
        """Return mean and deviation of a metric over the runs, or None if no run has it. which: `best` or `last`."""
        return spread([getattr(found, which).value for run in self.runs if (found := outcome(run, metric))])


@dataclass(frozen=True)
class Comparison:
    """The result of comparing runs."""

    runs: list[Run]
    """The runs, best first by the first metric. Runs without it come last."""
    names: dict[Run, str]
    """A unique name for each run."""
    metrics: list[str]
    differing: list[str]
    """All keys of the configuration that differ."""
    shown: list[str]
    """The keys that differ and decide about the result or the cost, and the seed."""
    groups: list[Group]
    """The groups, best first."""
    references: list[paper_results.Reference]


def compare(runs: Sequence[Run], metrics: Sequence[str] = ()) -> Comparison:
    """Compare runs by the given metrics, or by the default ones. Raises UserError for a metric that no run has."""
    check_metrics(runs, metrics)
    metrics = list(metrics) or default_metrics(runs)
    readable = [run.config for run in runs if run.config]
    differing = config_keys.differing(readable)
    deciding = [key for key in differing if config_keys.decides(key)]
    ranked = best_first(runs, metrics[0])
    groups: dict[str, list[Run]] = {}
    for run in ranked:
        same = [config_keys.canonical(config_keys.value(run.config, key)) for key in deciding] if run.config else [str(run.path)]
        groups.setdefault("\n".join(same), []).append(run)
    made = [Group(members, {key: config_keys.value(members[0].config, key) for key in deciding}) for members in groups.values()]
    shown = [key for key in differing if key in deciding or key == config_keys.SEED or key in config_keys.COST_KEYS]
    references = paper_results.matching_references(readable)
    return Comparison(ranked, unique_names(runs), metrics, differing, shown, _ranked(made, metrics[0]), references)


@cache
def outcome(run: Run, metric: str) -> Outcome | None:
    """Return the best and the last point of a metric, or None if the run does not have it.

    The earliest of equally good points is the best. Values that are not finite are never the best.
    """
    points = run.metrics.series(metric)
    if not points:
        return None
    sign = -1 if lower_is_better(metric) else 1
    best = max((point for point in points if math.isfinite(point.value)), key=lambda point: sign * point.value, default=points[-1])
    return Outcome(best, points[-1])


@cache
def to_reference(run: Run) -> float | None:
    """Return by how many points the last top-1 is above that of training.reference after as many epochs. None if there is none."""
    both = (
        row[TOP1] - row[REFERENCE] for row in reversed(run.metrics.rows) if _is_finite(row.get(TOP1)) and _is_finite(row.get(REFERENCE))
    )
    return next(both, None)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def spread(values: Sequence[float]) -> Spread | None:
    """Return mean and deviation of values, or None if there are none."""
    if not values:
        return None
    mean = statistics.fmean(values)
    if not math.isfinite(mean):  # statistics.stdev fails on such values
        return Spread(mean, None, len(values))
    return Spread(mean, statistics.stdev(values) if len(values) > 1 else None, len(values))


def lower_is_better(metric: str) -> bool:
    """Return whether a lower value of a metric is better. That is so for losses, times, memory and norms."""
    return "loss" in metric or metric.startswith("time/") or (metric.endswith(("_s", "_share", "_mb", "_norm")) and "per_s" not in metric)


def best_first(runs: Iterable[Run], metric: str) -> list[Run]:
    """Sort runs by the best value of a metric. Runs without it come last."""
    return sorted(runs, key=lambda run: (_rank(found.best.value if (found := outcome(run, metric)) else None, metric), str(run.path)))


def default_metrics(runs: Sequence[Run]) -> list[str]:
    """Return val/top1, val/top1_ema if a run has it, and val/loss."""
    has_average = any(run.metrics.series(EMA) for run in runs)
    return [TOP1, *([EMA] if has_average else []), LOSS]


def check_metrics(runs: Sequence[Run], metrics: Sequence[str]) -> None:
    """Raise UserError for a metric that no run has, unless no run has any metrics yet."""
    missing = [metric for metric in metrics if not any(run.metrics.series(metric) for run in runs)]
    known = sorted({name for run in runs for name in run.metrics.names()}) if missing else []
    if known:
        raise UserError(f"no run has a metric {missing[0]!r}{did_you_mean(missing[0], known)} (there are {', '.join(known)})")


def unique_names(runs: Sequence[Run]) -> dict[Run, str]:
    """Return a name for each run: as many last parts of its path as make all names unique."""
    paths = [run.path.resolve() for run in runs]
    deepest = max((len(path.parts) for path in paths), default=1)
    for parts in range(1, deepest + 1):
        names = ["/".join(path.parts[-parts:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return dict(zip(runs, names, strict=True)) if runs else {}


def _ranked(groups: Iterable[Group], metric: str) -> list[Group]:
    return sorted(groups, key=lambda group: _rank(found.mean if (found := group.spread(metric)) else None, metric))


def _rank(value: float | None, metric: str) -> tuple[bool, float]:
    is_none = value is None or not math.isfinite(value)
    return is_none, 0.0 if value is None or is_none else value if lower_is_better(metric) else -value
