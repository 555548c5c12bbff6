"""Sums that do not depend on the order of their addends: float32 values as whole numbers of a unit, in int64.

Sums of floating-point numbers are rounded, so that they depend on the order of the addends, and therefore on the number of ranks. Sums of
integers are exact. The units are our choice.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

SUM_BITS = 62
"""A sum stays below 2**62 in size, so that int64 never overflows."""
GRADIENT_UNITS = (-4, -52)
"""Exponents of the two units in which a gradient is written. The second holds what the first leaves. AdamW divides a gradient by a root of
mean squares plus 1e-8, so that half of 2**-52 moves a parameter by 1e-8 of the learning rate at most. BatchNorm of dead channels makes
gradients of 1e9 in networks that train well, so that the first unit has to leave room."""
STATISTIC_UNITS = (-20, -50)
"""Exponents of the two units in which a BatchNorm statistic or a loss is written."""
SQUARE_UNITS = (62, 32, 2, -28, -58, -88, -118)
"""Exponents of the units in which the square of a mean gradient is written. 2**31 squares of at most 2**92 can be added."""

CPU_PIECE = 2**16
"""Values that a CPU converts at once: as many as its cache holds. Squares were nine times as fast as all at once."""
GPU_PIECE = 2**22
"""Values that a GPU converts at once, so that they take little memory."""


def largest_gradient(micro_batches: int) -> float:
    """Return the largest gradient of which `micro_batches` can be added, and of which 2**31 squares can be: 7e13 up to 4096 of them."""
    return 2.0 ** min(46, SUM_BITS + GRADIENT_UNITS[0] - _bits(micro_batches))


def largest_statistic(micro_batches: int) -> float:
    """Return the largest statistic or loss of which `micro_batches` can be added."""
    return 2.0 ** (SUM_BITS + STATISTIC_UNITS[0] - _bits(micro_batches))


def piece_of(values: torch.Tensor) -> int:
    """Return the number of values to convert at once on the device of these."""
    return CPU_PIECE if values.device.type == "cpu" else GPU_PIECE


def to_limbs(values: torch.Tensor, exponents: Sequence[int]) -> list[torch.Tensor]:
    """Write values, float64, as sums of whole numbers of descending units: one int64 tensor for each unit 2**exponent.

    Each but the last takes what it can of the rest, rounded down, and the last is rounded. So every limb after the first lies between 0
    and the ratio of its unit to the one before.
    """
    limbs, rest = [], values
    for exponent in exponents[:-1]:
        limb = (rest * 2.0**-exponent).floor_()
        rest = rest - limb * 2.0**exponent
        limbs.append(limb.long())
    return [*limbs, (rest * 2.0 ** -exponents[-1]).round_().long()]


def from_limbs(limbs: Sequence[torch.Tensor], exponents: Sequence[int]) -> torch.Tensor:
    """Return the values that are written in two limbs, float64. The sum of the two is rounded."""
    first, second = (limb.double().mul_(2.0**exponent) for limb, exponent in zip(limbs, exponents, strict=True))
    return first.add_(second)


def of_limbs(limbs: Sequence[int], exponents: Sequence[int]) -> float:
    """Return the float64 that is nearest to a value in limbs."""
    last = exponents[-1]
    return sum(limb << (exponent - last) for limb, exponent in zip(limbs, exponents, strict=True)) / (1 << -last)


def sum_of_squares(values: torch.Tensor) -> torch.Tensor:
    """Return the sum of the squares of float32 values of at most 2**46, in limbs, int64 [7]."""
    pieces = values.split(piece_of(values))
    return torch.stack([_squares(piece) for piece in pieces]).sum(0)


def _squares(values: torch.Tensor) -> torch.Tensor:
    return torch.stack([limb.sum() for limb in to_limbs(values.double().square_(), SQUARE_UNITS)])


def _bits(count: int) -> int:
    return (count - 1).bit_length()
