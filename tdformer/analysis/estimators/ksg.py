"""Mutual information between two vectors by distances to nearest neighbours, whatever their distribution.

This is the first estimator of Kraskov, Stögbauer and Grassberger (2004). scikit-learn has it for single numbers only.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree
from scipy.special import digamma

from tdformer.analysis.estimators import Floats

NEIGHBOURS = 4
"""A common choice. Fewer neighbours have less bias and more variance."""
TIE_BREAK = 1e-10
"""Noise, relative to each component's deviation, that tells equal values apart, as in scikit-learn."""


def mutual_information(x: Floats, y: Floats, seed: int = 0) -> float:
    """Return I(X; Y) in bits of pairs of vectors, x [pairs, p] and y [pairs, q].

    Its bias is small for few components (up to about 5 each) that do not nearly determine each other. Raises ValueError unless there are
    more pairs than neighbours.
    """
    if len(x) <= NEIGHBOURS:
        raise ValueError(f"{len(x)} pairs are too few for {NEIGHBOURS} neighbours")
    generator = np.random.default_rng(seed)
    x, y = _scaled(x, generator), _scaled(y, generator)
    distances, _ = cKDTree(np.hstack([x, y])).query(np.hstack([x, y]), k=NEIGHBOURS + 1, p=np.inf)
    radius = np.nextafter(distances[:, -1], 0)  # strictly nearer than the k-th neighbour
    inside = [cKDTree(side).query_ball_point(side, radius, p=np.inf, return_length=True) for side in (x, y)]  # each counts itself
    nats = digamma(NEIGHBOURS) + digamma(len(x)) - np.mean(digamma(inside[0]) + digamma(inside[1]))
    return float(nats / np.log(2))


def _scaled(x: Floats, generator: np.random.Generator) -> Floats:
    deviation = x.std(0)
    x = (x - x.mean(0)) / np.where(deviation > 0, deviation, 1)
    return x + TIE_BREAK * generator.standard_normal(x.shape)
