"""Estimators of the mutual information between two variables of which pairs were observed, all in bits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
