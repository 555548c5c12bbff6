"""Autograd functions on the kernels: LIF neurons, with or without the BatchNorm before them.

They work on rows [T, M, C]. A row holds the channels of one pixel or token side by side, as in torch's channels_last format. Tensors in
that format are passed as views, others are copied.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tdformer.models.kernels import operators


class _Neurons(torch.autograd.Function):
    """Runs neurons. Saves their currents for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, x_TM: torch.Tensor, v_M: torch.Tensor | None, v_threshold: float, keeps_last: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        ctx.v_threshold = v_threshold
        ctx.save_for_backward(x_TM, v_M)
        ctx.set_materialize_grads(False)
        spikes_TM, last_M = operators.neurons(x_TM, v_M, v_threshold, keeps_last)
        return spikes_TM, last_M if keeps_last else None

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        x_TM, v_M = ctx.saved_tensors
        of_x_TM, of_v_M = operators.neurons_backward(x_TM, v_M, *_given(gradients, x_TM), ctx.v_threshold)
        return of_x_TM, None if v_M is None else of_v_M, None, None


class _NormNeurons(torch.autograd.Function):
    """Runs BatchNorm with the statistics of the batch, then neurons. Saves BatchNorm's input for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        y_TMC: torch.Tensor,
        v_MC: torch.Tensor | None,
        weight_C: torch.Tensor,
        bias_C: torch.Tensor,
        mean_C: torch.Tensor,
        invstd_C: torch.Tensor,
        v_threshold: float,
        keeps_last: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        ctx.v_threshold = v_threshold
        ctx.save_for_backward(y_TMC, v_MC, weight_C, bias_C, mean_C, invstd_C)
        ctx.set_materialize_grads(False)
        scale_C = invstd_C * weight_C
        spikes_TMC, last_MC = operators.norm_neurons(y_TMC, v_MC, scale_C, bias_C - mean_C * scale_C, v_threshold, keeps_last)
        return spikes_TMC, last_MC if keeps_last else None

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        y_TMC, v_MC, *norm = ctx.saved_tensors
        given = _given(gradients, y_TMC)
        of_y_TMC, of_v_MC, of_weight_C, of_bias_C = operators.norm_neurons_backward(y_TMC, v_MC, *norm, *given, ctx.v_threshold)
        return of_y_TMC, None if v_MC is None else of_v_MC, of_weight_C, of_bias_C, None, None, None, None


def _given(gradients: tuple[torch.Tensor | None, ...], x_TM: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the gradients of spikes and last potentials in the form that the kernels take."""
    of_spikes_TM, of_v_M = gradients
    of_spikes_TM = x_TM.new_zeros(x_TM.shape) if of_spikes_TM is None else of_spikes_TM
    return of_spikes_TM.contiguous(), None if of_v_M is None else of_v_M.contiguous()


def lif(
    x_TB: torch.Tensor, v_B: torch.Tensor | None, v_threshold: float, keeps_last: bool, norm: nn.Module | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the spikes [T, B, …] of LIF neurons, and their last potentials.

    x_TB: currents [T, B, …]; with `norm` the input of that BatchNorm, [T, B, C, …]. v_B: first potentials; None for 0. norm: a BatchNorm
    that `takes` accepts. The results have the memory layout of the currents, and channels_last after a BatchNorm.
    """
    is_normed = norm is not None
    order = [1, *range(3, x_TB.dim()), 2] if is_normed else sorted(range(1, x_TB.dim()), key=x_TB.stride().__getitem__, reverse=True)
    x_in_order = x_TB.permute(0, *order)
    v_in_order = None if v_B is None else v_B.permute([axis - 1 for axis in order])
    if norm is None:
        v_M = None if v_in_order is None else v_in_order.flatten()
        spikes, last = _Neurons.apply(_dense_steps(x_in_order.flatten(1)), v_M, v_threshold, keeps_last)
    else:
        y_TMC, v_MC = x_in_order.flatten(1, -2).contiguous(), None if v_in_order is None else v_in_order.flatten(0, -2).contiguous()
        affine = norm.weight, norm.bias, *_statistics(norm, x_TB)
        spikes, last = _NormNeurons.apply(y_TMC, v_MC, *affine, v_threshold, keeps_last)
    back = [order.index(axis) for axis in range(1, x_TB.dim())]
    spikes_TB = spikes.view(x_in_order.shape).permute(0, *(1 + axis for axis in back))
    return spikes_TB, last.view(x_in_order.shape[1:]).permute(back) if keeps_last else None


def takes(norm: nn.Module) -> bool:
    """Tell whether a layer is a BatchNorm that normalises by the statistics of this rank's batch, with a weight and a momentum.

    Otherwise the layer itself runs: in evaluation, over ranks, and where a BatchNorm was replaced or folded.
    """
    if not isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
        return False
    return norm.training and norm.momentum is not None and bool(norm.affine)


def _statistics(norm: Any, y_TBC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and 1/standard deviation of the batch, and update the running statistics, as torch's BatchNorm does."""
    running = (norm.running_mean, norm.running_var) if norm.track_running_stats else (None, None)
    if norm.track_running_stats:
        norm.num_batches_tracked.add_(1)
    if y_TBC.is_meta:  # torch has no such operator on other devices
        return torch.empty_like(norm.weight), torch.empty_like(norm.weight)
    y_BCHW = y_TBC.flatten(0, 1)[:, :, *[None] * (5 - y_TBC.dim())]  # torch recognises channels_last by four axes
    with torch.no_grad():
        mean_C, variance_C = torch.batch_norm_update_stats(y_BCHW, running[0], running[1], norm.momentum)
        return mean_C, (variance_C + norm.eps).rsqrt()


def _dense_steps(x_TM: torch.Tensor) -> torch.Tensor:
    """Return the currents with each time step contiguous. All steps may share one memory, as those of an image's current do."""
    return x_TM if x_TM[0].is_contiguous() else x_TM.contiguous()
