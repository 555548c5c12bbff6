"""Mutual information between two vectors by their canonical correlations: exact if they are jointly Gaussian, else a lower bound."""

from __future__ import annotations

import numpy as np

from tdformer.analysis.estimators import Floats

CLOSEST = 1 - 1e-12
"""The largest squared correlation that counts. Equal vectors would have infinite information: it is 20 bits per component then."""


def mutual_information(x: Floats, y: Floats) -> float:
    """Return I(X; Y) in bits of pairs of vectors, x [pairs, p] and y [pairs, q].

    I = -1/2 sum_i log2(1 - r_i^2), r_i the canonical correlations. With few pairs it is too large, by about p·q / 2n nats for
    independent vectors: subtract its value on shuffled pairs. Raises ValueError unless there are more pairs than p + q.
    """
    if len(x) <= x.shape[1] + y.shape[1]:
        raise ValueError(f"{len(x)} pairs are too few for vectors of {x.shape[1]} and {y.shape[1]} components")
    squared = np.linalg.svd(_orthonormal(x).T @ _orthonormal(y), compute_uv=False) ** 2
    return float(-0.5 * np.log2(1 - np.minimum(squared, CLOSEST)).sum())


def _orthonormal(x: Floats) -> Floats:
    """Return an orthonormal basis of the centred columns. Columns without a direction of their own, such as constant ones, are left out."""
    basis, values, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
    return basis[:, values > values.max(initial=0) * max(x.shape) * np.finfo(np.float64).eps]
