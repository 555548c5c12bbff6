"""Every estimator of mutual information gives known answers: analytic ones, 0 for independent variables, the entropy of equal ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdformer.analysis.estimators import Floats, binary, gaussian, ksg
from tdformer.analysis.estimators.half_samples import halves, interval


def entropy(p: float) -> float:
    return float(-p * np.log2(p) - (1 - p) * np.log2(1 - p))


def counts(x: Floats, y: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    return np.asarray(len(x), float), x.sum(0), y.sum(0), (x * y).sum(0)


def spikes(rate: float, shape: tuple[int, ...], seed: int) -> Floats:
    return (np.random.default_rng(seed).random(shape) < rate).astype(float)


def correlated(correlation: float, pairs: int, components: int, seed: int) -> tuple[Floats, Floats]:
    generator = np.random.default_rng(seed)
    x, noise = generator.standard_normal((2, pairs, components))
    return x, correlation * x + np.sqrt(1 - correlation**2) * noise


@pytest.mark.parametrize("flip", [0.05, 0.2, 0.5])
def test_binary_symmetric_channel(flip: float) -> None:
    """The capacity of this channel is 1 - H(flip), which an even input reaches."""
    x = spikes(0.5, (500, 4000), seed=1)
    y = np.abs(x - spikes(flip, x.shape, seed=2))
    mean = binary.mutual_information(*counts(x, y)).mean()
    assert mean == pytest.approx(1 - entropy(flip), abs=3e-3)


@pytest.mark.parametrize("pairs", [30, 300])
@pytest.mark.parametrize("rates", [(0.5, 0.5), (0.2, 0.4)])
def test_independent_spikes_have_none_on_average(pairs: int, rates: tuple[float, float]) -> None:
    """The correction takes away 1 / (2 n ln 2) bits, 0.024 for 30 pairs. What is left falls as 1 / n²."""
    x, y = spikes(rates[0], (pairs, 20_000), seed=3), spikes(rates[1], (pairs, 20_000), seed=4)
    assert binary.mutual_information(*counts(x, y)).mean() == pytest.approx(0, abs=6 / pairs**2)


@pytest.mark.parametrize("rate", [0.02, 0.3, 0.5])
def test_equal_spikes_have_their_entropy(rate: float) -> None:
    x = spikes(rate, (1000, 2000), seed=5)
    samples, ones, _, _ = counts(x, x)
    assert binary.mutual_information(*counts(x, x)).mean() == pytest.approx(entropy(rate), abs=3e-3)
    assert np.array_equal(binary.entropy(samples, ones), binary.mutual_information(*counts(x, x)))


@given(st.integers(1, 50), st.data())
def test_any_counts_give_a_finite_number(samples: int, data: st.DataObject) -> None:
    both = data.draw(st.integers(0, samples))
    first = data.draw(st.integers(both, samples))
    second = data.draw(st.integers(both, samples - first + both))
    found = binary.mutual_information(*(np.asarray(count, float) for count in (samples, first, second, both)))
    assert -3 <= found <= 2
    mirrored = binary.mutual_information(*(np.asarray(count, float) for count in (samples, second, first, both)))
    assert found == pytest.approx(mirrored)


@pytest.mark.parametrize(("correlation", "components"), [(0.3, 1), (0.6, 1), (0.6, 3), (0.9, 2)])
def test_correlated_gaussians(correlation: float, components: int) -> None:
    """I = -components / 2 · log2(1 - correlation²)."""
    x, y = correlated(correlation, 4000, components, seed=6)
    expected = -components / 2 * np.log2(1 - correlation**2)
    assert gaussian.mutual_information(x, y) == pytest.approx(expected, abs=0.06)
    assert ksg.mutual_information(x, y) == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("components", [1, 4])
def test_independent_gaussians_have_none(components: int) -> None:
    x, y = correlated(0.0, 2000, components, seed=7)
    assert gaussian.mutual_information(x, y) == pytest.approx(components**2 / (2 * 2000 * np.log(2)), abs=0.01), "the known bias"
    assert ksg.mutual_information(x, y) == pytest.approx(0, abs=0.06)


def test_what_no_correlation_shows_neighbours_find() -> None:
    """y = x² + noise has no linear correlation with x."""
    generator = np.random.default_rng(8)
    x = generator.standard_normal((3000, 1))
    y = x**2 + 0.1 * generator.standard_normal((3000, 1))
    assert gaussian.mutual_information(x, y) < 0.02
    assert ksg.mutual_information(x, y) > 1


def test_maps_that_can_be_undone_change_nothing() -> None:
    x, y = correlated(0.7, 1000, 3, seed=9)
    turned = x @ np.array([[2.0, 1, 0], [0, 1, 0], [5, 0, -3]]) + 7
    assert gaussian.mutual_information(turned, y) == pytest.approx(gaussian.mutual_information(x, y))
    assert ksg.mutual_information(100 * x - 3, y) == pytest.approx(ksg.mutual_information(x, y), abs=1e-6)


def test_constant_and_repeated_components_tell_nothing_new() -> None:
    x, y = correlated(0.7, 1000, 2, seed=10)
    wide = np.hstack([x, x[:, :1], np.ones((1000, 1))])
    assert gaussian.mutual_information(wide, y) == pytest.approx(gaussian.mutual_information(x, y))
    assert gaussian.mutual_information(np.ones((1000, 2)), y) == 0
    assert ksg.mutual_information(np.ones((1000, 2)), y) == pytest.approx(0, abs=0.15)


def test_equal_vectors_have_much_and_no_infinite_information() -> None:
    x, _ = correlated(0.0, 1000, 2, seed=11)
    assert 30 < gaussian.mutual_information(x, x) < 50
    assert 5 < ksg.mutual_information(x, x) < 50


def test_too_few_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="4 pairs are too few for vectors of 2 and 2 components"):
        gaussian.mutual_information(np.zeros((4, 2)), np.zeros((4, 2)))
    with pytest.raises(ValueError, match="4 pairs are too few for 4 neighbours"):
        ksg.mutual_information(np.zeros((4, 1)), np.zeros((4, 1)))


def test_half_samples_know_the_error_of_a_mean() -> None:
    """Some 95 % of the intervals hold the true mean, and their width is 2 · 1.96 / √200."""
    hits, widths = 0, []
    for seed in range(300):
        values = np.random.default_rng(seed).standard_normal(200)
        found = interval(values.mean(), [values[half].mean() for half in halves(200, seed)])
        hits += found.low <= 0 <= found.high
        widths.append(found.high - found.low)
    assert 0.91 <= hits / 300 <= 0.98
    assert np.mean(widths) == pytest.approx(2 * 1.96 / np.sqrt(200), rel=0.03)


def test_half_samples_know_the_error_of_mutual_information() -> None:
    true, hits = -0.5 * np.log2(1 - 0.6**2), 0
    for seed in range(100):
        x, y = correlated(0.6, 400, 1, seed)
        found = interval(gaussian.mutual_information(x, y), [gaussian.mutual_information(x[h], y[h]) for h in halves(400, seed)])
        hits += found.low <= true <= found.high
    assert hits >= 88


def test_halves_are_halves_and_are_repeatable() -> None:
    masks = halves(101, seed=1)
    assert set(masks.sum(1)) == {50}
    assert np.array_equal(masks, halves(101, seed=1))
    assert not np.array_equal(masks, halves(101, seed=2))
