"""Runs side by side: what differs in their configurations, what came out, and what remains of it over several seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from data_pipelines.errors import UserError
from tdformer.config.yaml_io import did_you_mean
from tdformer.runs import configs, paper
from tdformer.runs.metric_rows import Point
from tdformer.runs.reading import Run

TOP1, EMA, LOSS = "val/top1", "val/top1_ema", "val/loss"


@dataclass(frozen=True)
class Outcome:
    """Of one metric in one run."""

    best: Point
    last: Point


@dataclass(frozen=True)
class Spread:
    """Over runs."""

    mean: float
    deviation: float | None
    """The sample standard deviation; None of a single run."""
    count: int


@dataclass(frozen=True)
class Group:
    """Runs of one experiment: nothing that decides about the result differs but the seed."""

    runs: list[Run]
    """The best one first."""
    setting: dict[str, Any]
    """Its values of the keys that differ between the groups."""

    @property
    def seeds(self) -> list[Any]:
        return [run.config.get(configs.SEED) for run in self.runs]

    @property
    def notes(self) -> list[str]:
        """What a mean over these runs does not tell."""
        unfinished = sum(run.state != "finished" for run in self.runs)
        twice = len(self.runs) - len(set(map(str, self.seeds)))
        told = [(unfinished, f"{unfinished} not finished"), (twice, f"{twice + 1} runs share a seed" if twice else "")]
        return [text for is_so, text in told if is_so] if len(self.runs) > 1 else []

    def spread(self, metric: str, which: str = "best") -> Spread | None:
        """which: best or last."""
        return spread([getattr(found, which).value for run in self.runs if (found := outcome(run, metric))])


@dataclass(frozen=True)
class Comparison:
    runs: list[Run]
    """The best by the first metric first; those without it last."""
    names: dict[Run, str]
    """Each run's, unlike all others'."""
    metrics: list[str]
    differing: list[str]
    """All keys that differ."""
    shown: list[str]
    """Those of them that decide about the result or the cost, and the seed."""
    groups: list[Group]
    """The best first, as the runs."""
    references: list[paper.Reference]


def compare(runs: Sequence[Run], metrics: Sequence[str] = ()) -> Comparison:
    """Raises UserError for a metric that no run has."""
    check_metrics(runs, metrics)
    metrics = list(metrics) or default_metrics(runs)
    readable = [run.config for run in runs if run.config]
    differing = configs.differing(readable)
    deciding = [key for key in differing if configs.decides(key)]
    ranked = best_first(runs, metrics[0])
    groups: dict[str, list[Run]] = {}
    for run in ranked:
        same = [configs.canonical(configs.value(run.config, key)) for key in deciding] if run.config else [str(run.path)]
        groups.setdefault("\n".join(same), []).append(run)
    made = [Group(members, {key: configs.value(members[0].config, key) for key in deciding}) for members in groups.values()]
    shown = [key for key in differing if key in deciding or key == configs.SEED or key in configs.OF_COST]
    references = paper.fitting(readable)
    return Comparison(ranked, unique_names(runs), metrics, differing, shown, _ranked(made, metrics[0]), references)


@cache
def outcome(run: Run, metric: str) -> Outcome | None:
    """The earliest of equally good points. Values that are not finite are never the best."""
    points = run.metrics.series(metric)
    if not points:
        return None
    sign = -1 if lower_is_better(metric) else 1
    best = max((point for point in points if math.isfinite(point.value)), key=lambda point: sign * point.value, default=points[-1])
    return Outcome(best, points[-1])


def spread(values: Sequence[float]) -> Spread | None:
    if not values:
        return None
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def lower_is_better(metric: str) -> bool:
    """Of losses, times, memory and norms."""
    return "loss" in metric or metric.startswith("time/") or (metric.endswith(("_s", "_share", "_mb", "_norm")) and "per_s" not in metric)


def best_first(runs: Iterable[Run], metric: str) -> list[Run]:
    return sorted(runs, key=lambda run: (_rank(found.best.value if (found := outcome(run, metric)) else None, metric), str(run.path)))


def default_metrics(runs: Sequence[Run]) -> list[str]:
    has_average = any(run.metrics.series(EMA) for run in runs)
    return [TOP1, *([EMA] if has_average else []), LOSS]


def check_metrics(runs: Sequence[Run], metrics: Sequence[str]) -> None:
    """Raises UserError for one that no run has, unless there are no metrics at all yet."""
    missing = [metric for metric in metrics if not any(run.metrics.series(metric) for run in runs)]
    known = sorted({name for run in runs for name in run.metrics.names()}) if missing else []
    if known:
        raise UserError(f"no run has a metric {missing[0]!r}{did_you_mean(missing[0], known)} (there are {', '.join(known)})")


def unique_names(runs: Sequence[Run]) -> dict[Run, str]:
    """As much of the end of each path as it takes to tell them apart."""
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
