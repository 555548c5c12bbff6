"""Keeps an exponential moving average (EMA) of the network, which is evaluated beside it.

After every optimizer step: average = decay * average + (1 - decay) * value, as in timm's ModelEmaV2. The average starts at the weights
that the run starts with. BatchNorm's statistics are averaged too [our choice].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


class MovingAverage:
    """Averages tensors that change in place. The tensors may be this rank's parts of larger ones."""

    def __init__(self, tensors: Sequence[torch.Tensor], decay: float) -> None:
        self.decay = decay
        self._tensors = list(tensors)
        self._averages = [tensor.data.clone() for tensor in tensors]

    def update(self) -> None:
        """Move the averages towards the present values.

        Each operation is rounded by itself, so that an element's average does not depend on its place in a tensor.
        """
        values, averages = [], []
        for tensor, average in zip(self._tensors, self._averages, strict=True):
            if average.is_floating_point():
                values.append(tensor.data)
                averages.append(average)
            else:
                average.copy_(tensor.data)  # BatchNorm's counters
        torch._foreach_mul_(averages, self.decay)
        torch._foreach_add_(averages, torch._foreach_mul(values, 1 - self.decay))

    def exchange(self) -> None:
        """Swap the averages and the tensors' values. A second call swaps them back."""
        for tensor, average in zip(self._tensors, self._averages, strict=True):
            value = tensor.data.clone()
            tensor.data.copy_(average)
            average.copy_(value)

    def set(self, averages: Sequence[torch.Tensor]) -> None:
        for own, average in zip(self._averages, averages, strict=True):
            own.copy_(average)
