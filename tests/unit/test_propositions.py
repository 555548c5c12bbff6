"""The paper's propositions hold where it says so."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdformer.analysis.propositions import masked_variance_bound, processed_mean, processed_variance, token_attention_variance


@given(
    rate=st.floats(0, 1),
    bounds=st.tuples(st.floats(0, 3), st.floats(0, 3)).map(sorted),
    masks=st.lists(st.tuples(st.floats(0, 1), st.floats(0.01, 1)), min_size=1, max_size=5),
)
def test_proposition_4_1(rate: float, bounds: list[float], masks: list[tuple[float, float]]) -> None:
    """The mask takes a few values between the bounds with any probabilities. It may depend on X: only where X is 1 it matters."""
    lower, upper = bounds
    values = np.array([lower + (upper - lower) * place for place, _ in masks])
    chances = rate * np.array([weight for _, weight in masks]) / sum(weight for _, weight in masks)
    mean, square = (chances * values).sum(), (chances * values**2).sum()
    assert square - mean**2 <= masked_variance_bound(rate, upper, lower) + 1e-9


@given(rate=st.floats(0.5, 1), upper=st.floats(0.5, 3))
def test_the_bound_is_reached_where_every_second_spike_is_let_through(rate: float, upper: float) -> None:
    """A mask that is `upper` with probability 1/(2 rate), and else 0, reaches the bound. The rate must be 1/2 at least."""
    passes = rate * 1 / (2 * rate)
    variance = upper**2 * passes * (1 - passes)
    assert variance == pytest.approx(masked_variance_bound(rate, upper, 0.0))


@given(rate=st.floats(0.05, 0.95), channels=st.sampled_from([1, 8, 64]), seed=st.integers(0, 2**31))
def test_variance_of_token_attention_grows_with_the_channels(rate: float, channels: int, seed: int) -> None:
    sums = (np.random.default_rng(seed).random((4000, channels)) < rate).sum(1)
    assert sums.var() == pytest.approx(token_attention_variance(rate, channels), rel=0.25)


@given(rate=st.floats(0.05, 0.1), upper=st.floats(1, 2), seed=st.integers(0, 2**31))
@settings(max_examples=20)
def test_proposition_b_4(rate: float, upper: float, seed: int) -> None:
    """The proposition is about the mean over directions w, of which ten are drawn."""
    generator = np.random.default_rng(seed)
    x = (generator.random((1000, 768)) < rate).astype(float)
    w = generator.standard_normal((768, 10))
    w = (w - w.mean(0)) / np.linalg.norm(w - w.mean(0), axis=0)
    y = x[:, :, None] * (x @ w).clip(0, upper)[:, None, :]
    assert y.mean() / x.mean() == pytest.approx(processed_mean(rate), rel=0.2)
    assert y.var() / x.var() == pytest.approx(processed_variance(rate), rel=0.3)
