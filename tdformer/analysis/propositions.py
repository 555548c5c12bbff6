"""The paper's propositions about the variance behind the top-down path, as functions."""

from __future__ import annotations

import math


def masked_variance_bound(rate: float, upper: float, lower: float) -> float:
    """Return the bound of proposition 4.1: Var(X M) for X of Bernoulli(rate) and any M between lower and upper, 0 <= lower <= upper."""
    f, a, b = rate, upper, lower
    if 2 * a * f <= a + b:
        return a**2 * (f**2 - f + 0.5) + a * b * (1 - 2 * f) + b**2 / 2
    return (a**2 + 2 * a * b + b**2 - 4 * f * a * b) / 4


def token_attention_variance(rate: float, channels: int) -> float:
    """Return the variance of the sum of `channels` independent spikes, which masks tokens in QKFormer: it grows with the channels."""
    return channels * rate * (1 - rate)


def processed_mean(rate: float) -> float:
    """Return E(Y) / E(X) of proposition B.4: Y = X clamp(w X), w of length 1 and mean 0, lower bound near 0, small rate."""
    return math.sqrt(rate * (1 - rate) / (2 * math.pi))


def processed_variance(rate: float) -> float:
    """Return Var(Y) / Var(X) of proposition B.4."""
    return rate * (math.pi - rate) / (2 * math.pi)
