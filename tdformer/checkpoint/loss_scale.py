"""LossScale: the factor on the loss that keeps small gradients above the smallest numbers of fp16.

It changes as in torch's GradScaler: it is halved when a gradient overflows, and doubled after 2000 steps without an overflow. It is a
power of two, which changes only the exponent of a number.
"""

from __future__ import annotations

from dataclasses import dataclass

STEPS_TO_GROW = 2000


@dataclass(frozen=True)
class LossScale:
    factor: float = 2.0**16
    good_steps: int = 0
    """Steps since the factor last changed."""

    @property
    def can_fall(self) -> bool:
        """Tell whether the factor is above 1. At 1 a gradient that is not finite has another cause."""
        return self.factor > 1

    def after_overflow(self) -> LossScale:
        return LossScale(self.factor / 2)

    def after_step(self) -> LossScale:
        if self.good_steps + 1 < STEPS_TO_GROW:
            return LossScale(self.factor, self.good_steps + 1)
        return LossScale(self.factor * 2)
