"""The factor on the loss with which small gradients stay above what fp16 can tell from zero.

Dynamic, as torch's GradScaler has it: halved when a gradient overflows, doubled after 2000 steps without. Powers of two change no
bit of a number but its exponent.
"""

from __future__ import annotations

from dataclasses import dataclass

STEPS_TO_GROW = 2000


@dataclass(frozen=True)
class LossScale:
    factor: float = 2.0**16
    good_steps: int = 0
    """Since it last changed."""

    @property
    def can_fall(self) -> bool:
        """At 1 a gradient that is not finite is no matter of scale."""
        return self.factor > 1

    def after_overflow(self) -> LossScale:
        return LossScale(self.factor / 2)

    def after_step(self) -> LossScale:
        if self.good_steps + 1 < STEPS_TO_GROW:
            return LossScale(self.factor, self.good_steps + 1)
        return LossScale(self.factor * 2)
