"""Lamb: LAMB for parameters of which every rank steps a part.

LAMB scales the step of each weight by the norm of the weight over the norm of its step (You et al., arXiv 1904.00962). Both norms are of
the whole weight. timm's Lamb, and DeepSpeed's, take the norms of what they are given, which under ZeRO is a part of many weights at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from tdformer.training.reduction.fixed_point import SQUARE_UNITS, sum_of_squares


class Share(NamedTuple):
    """The elements [start, end) of a tensor that is stepped. They are of one parameter."""

    parameter: int
    """Number of the parameter, the same on all ranks."""
    start: int
    end: int


class Lamb(torch.optim.Optimizer):
    """Steps as timm's Lamb does with bias correction and without its clipping: groups without weight decay are not scaled.

    Norms are added up as whole numbers, so that they are the same bits on any number of ranks. The host does not wait for them.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, {"lr": 0.0, "betas": betas, "eps": eps, "weight_decay": 0.0})
        tensors = [tensor for group in self.param_groups for tensor in group["params"]]
        self._shares: Mapping[torch.Tensor, Sequence[Share]]
        self.shard({tensor: [Share(number, 0, tensor.numel())] for number, tensor in enumerate(tensors)}, len(tensors), None)

    def shard(
        self, shares: Mapping[torch.Tensor, Sequence[Share]], parameters: int, add_up: Callable[[torch.Tensor], torch.Tensor] | None
    ) -> None:
        """Say which parameters the tensors that are stepped hold. Without this call, each of them is a whole parameter.

        parameters: their number. add_up: adds up a tensor over the ranks in place. None: this rank has whole parameters.
        """
        self._shares, self._parameters, self._add_up = shares, parameters, add_up

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Step the parameters. Their gradients are used up. Collective if parameters are sharded."""
        for group in self.param_groups:
            tensors = [tensor for tensor in group["params"] if tensor.grad is not None]
            for tensor in tensors:
                _write_update(tensor, self.state[tensor], group)
            if group["weight_decay"] and group["params"]:
                self._scale_updates(tensors, group["params"][0].device)
            for tensor in tensors:
                tensor.add_(tensor.grad, alpha=-group["lr"])

    def _scale_updates(self, tensors: Sequence[torch.Tensor], device: torch.device) -> None:
        """Multiply the update of each parameter, which stands in its gradient, by the norm of the parameter over its own."""
        views = [(share.parameter, *_elements(share, tensor, _update(tensor))) for tensor in tensors for share in self._shares[tensor]]
        squares = torch.zeros(self._parameters, 2, len(SQUARE_UNITS), dtype=torch.int64, device=device)
        for parameter, values, update in views:
            squares[parameter] = torch.stack([sum_of_squares(values), sum_of_squares(update)])
        if self._add_up is not None:
            squares = self._add_up(squares)
        norms = _value(squares).sqrt()
        ratios = torch.where((norms > 0).all(1), norms[:, 0] / norms[:, 1], 1.0).float()
        for parameter, _, update in views:
            update.mul_(ratios[parameter])


def _elements(share: Share, values: torch.Tensor, update: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return values.view(-1)[share.start : share.end], update.view(-1)[share.start : share.end]


def _update(tensor: torch.Tensor) -> torch.Tensor:
    assert tensor.grad is not None
    return tensor.grad


def _write_update(tensor: torch.Tensor, state: dict[str, torch.Tensor], group: dict[str, Any]) -> None:
    """Update the moments of a tensor, and write what LAMB would take off it at a rate of 1 into its gradient."""
    gradient, (beta1, beta2) = _update(tensor), group["betas"]
    if "step" not in state:
        state |= {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(tensor), "exp_avg_sq": torch.zeros_like(tensor)}
    state["step"] += 1
    steps = state["step"].item()
    mean, square = state["exp_avg"], state["exp_avg_sq"]
    mean.lerp_(gradient, 1 - beta1)
    square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    torch.sqrt(square, out=gradient)
    gradient.div_((1 - beta2**steps) ** 0.5).add_(group["eps"])
    torch.div(mean, gradient, out=gradient)
    gradient.div_(1 - beta1**steps).add_(tensor, alpha=group["weight_decay"])


def _value(limbs: torch.Tensor) -> torch.Tensor:
    """Return what is written in limbs [..., 7], float64. The small ones are added first."""
    value = torch.zeros(limbs.shape[:-1], dtype=torch.float64, device=limbs.device)
    for limb, exponent in zip(reversed(limbs.unbind(-1)), reversed(SQUARE_UNITS), strict=True):
        value += limb.double() * 2.0**exponent
    return value
