"""Settings that are compared seed by seed: known intervals, and what is left out."""

from __future__ import annotations

import math
import random
import statistics

import pytest
from scipy import stats

from tdformer.runs.paired import paired

A = {0: 90.0, 42: 91.0, 2024: 89.5, 3407: 90.5, 114514: 90.0}


def test_a_constant_difference_is_certain() -> None:
    found = paired({seed: value + 0.5 for seed, value in A.items()}, A)
    assert found is not None
    assert (found.mean, found.t_low, found.t_high, found.bootstrap_low, found.bootstrap_high) == pytest.approx((0.5,) * 5)
    assert found.seeds == list(A)


def test_the_interval_is_that_of_the_paired_t_test() -> None:
    generator = random.Random(1)
    b = {seed: value + generator.gauss(0.4, 0.3) for seed, value in A.items()}
    found, expected = paired(b, A), stats.ttest_rel(list(b.values()), list(A.values())).confidence_interval(0.95)
    assert found is not None
    assert (found.t_low, found.t_high) == pytest.approx((expected.low, expected.high))
    assert found.t_low < found.bootstrap_low < found.mean < found.bootstrap_high < found.t_high


def test_the_bootstrap_of_few_and_of_many_seeds_agree_with_theory() -> None:
    few = paired({0: 1.0, 1: 0.0}, {0: 0.0, 1: 0.0})
    assert few is not None
    assert (few.bootstrap_low, few.bootstrap_high) == (0.0, 1.0)
    generator = random.Random(2)
    b = {seed: generator.gauss(1, 2) for seed in range(200)}
    many = paired(b, dict.fromkeys(b, 0.0))
    assert many is not None
    error = 1.96 * statistics.stdev(b.values()) / math.sqrt(200)
    assert (many.bootstrap_low, many.bootstrap_high) == pytest.approx((many.mean - error, many.mean + error), abs=0.05)


def test_only_seeds_of_both_count() -> None:
    found = paired({0: 1.0, 1: 2.0, 2: float("nan"), 3: 9.0}, {0: 0.0, 1: 0.0, 2: 0.0, 4: 0.0})
    assert found is not None
    assert (found.seeds, found.mean) == ([0, 1], 1.5)
    assert paired({0: 1.0, 1: 2.0}, {1: 1.0, 2: 1.0}) is None
    assert paired({}, {}) is None
