"""Compares two settings seed by seed: the same seed has the same initial weights and the same sample order, so its noise cancels."""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tdformer.runs import config_keys
from tdformer.runs.comparison import Comparison, Group, outcome

EXACT_UP_TO = 6
"""The bootstrap takes all resamples of up to this number of seeds (at most 46,656), and RESAMPLES random ones of more."""
RESAMPLES = 10_000
TAIL = 0.025


@dataclass(frozen=True)
class Paired:
    """The mean difference over seeds, with two 95 % intervals."""

    seeds: list[Any]
    mean: float
    t_low: float
    """The interval of the paired t-test, which takes the differences for normally distributed."""
    t_high: float
    bootstrap_low: float
    """The interval between the quantiles of means of resampled seeds. With few seeds it is too narrow."""
    bootstrap_high: float


def differences(comparison: Comparison, metric: str, which: str = "last") -> list[tuple[int, Paired]]:
    """Return for each setting but the first its place, and its difference to the first one, if they share at least two seeds.

    which: the `best` or the `last` value of each run. The last one is not chosen on the set that it was measured on.
    """
    groups = comparison.groups
    found = [(place, paired_groups(group, groups[0], metric, which)) for place, group in enumerate(groups) if place]
    return [(place, pair) for place, pair in found if pair is not None]


def paired_groups(group: Group, against: Group, metric: str, which: str = "last") -> Paired | None:
    """Return the difference of two settings, the first minus the second. None if they share fewer than two seeds."""
    return paired(_by_seed(group, metric, which), _by_seed(against, metric, which))


def paired(values: Mapping[Any, float], against: Mapping[Any, float]) -> Paired | None:
    """Return the difference of values by seed, the first minus the second, over the seeds of both. None for fewer than two."""
    seeds = [seed for seed in values if seed in against and math.isfinite(values[seed]) and math.isfinite(against[seed])]
    if len(seeds) < 2:
        return None
    deltas = [values[seed] - against[seed] for seed in seeds]
    mean, error = statistics.fmean(deltas), statistics.stdev(deltas) / math.sqrt(len(deltas))
    margin = _t_quantile(1 - TAIL, len(deltas) - 1) * error
    low, high = _bootstrap(deltas)
    return Paired(seeds, mean, mean - margin, mean + margin, low, high)


def _by_seed(group: Group, metric: str, which: str) -> dict[Any, float]:
    """Return the value of each seed. Of several runs with one seed the first counts: they are best first."""
    values: dict[Any, float] = {}
    for run in group.runs:
        if found := outcome(run, metric):
            values.setdefault(run.config.get(config_keys.SEED), getattr(found, which).value)
    return values


def _bootstrap(deltas: Sequence[float]) -> tuple[float, float]:
    if len(deltas) <= EXACT_UP_TO:
        means = [statistics.fmean(resample) for resample in itertools.product(deltas, repeat=len(deltas))]
    else:
        generator = random.Random(0)
        means = [statistics.fmean(generator.choices(deltas, k=len(deltas))) for _ in range(RESAMPLES)]
    means.sort()
    return means[int(TAIL * (len(means) - 1))], means[math.ceil((1 - TAIL) * (len(means) - 1))]


def _t_quantile(probability: float, degrees: int) -> float:
    from scipy.special import stdtrit  # slow to import

    return float(stdtrit(degrees, probability))
