"""The plug-in estimate of mutual information between two binary variables, from counts, with the correction of Miller and Madow."""

from __future__ import annotations

import numpy as np

from tdformer.analysis.estimators import Floats


def mutual_information(samples: Floats, first: Floats, second: Floats, both: Floats) -> Floats:
    """Return I(X; Y) in bits, element-wise. It may be slightly below 0, which makes its mean over independent pairs 0.

    samples: the number n of observed pairs. first, second: how often X, and how often Y, was 1. both: how often both were. The arrays
    have one shape, or shapes that broadcast.

    The plug-in estimate takes frequencies for probabilities. It is too large by (cells - rows - columns + 1) / 2n nats on average, where
    cells, rows and columns are those that occur [Miller 1955]. That is subtracted.
    """
    samples, first, second, both = np.broadcast_arrays(*(np.asarray(counts, np.float64) for counts in (samples, first, second, both)))
    cells = [both, first - both, second - both, samples - first - second + both]
    rows, columns = [first, samples - first], [second, samples - second]
    information = _entropy(rows, samples) + _entropy(columns, samples) - _entropy(cells, samples)
    excess = _occurring(cells) - _occurring(rows) - _occurring(columns) + 1
    return information - excess / (2 * samples * np.log(2))


def entropy(samples: Floats, ones: Floats) -> Floats:
    """Return H(X) in bits, element-wise, with the same correction: it is what X tells about itself."""
    return mutual_information(samples, ones, ones, ones)


def _entropy(counts: list[Floats], samples: Floats) -> Floats:
    return sum((_term(count / samples) for count in counts), np.zeros(()))


def _term(p: Floats) -> Floats:
    """Return -p log2 p, and 0 at p = 0."""
    return -p * np.log2(np.where(p > 0, p, 1.0))


def _occurring(counts: list[Floats]) -> Floats:
    return sum(((count > 0).astype(np.float64) for count in counts), np.zeros(()))
