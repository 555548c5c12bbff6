"""LIF neurons, and BatchNorm before them, as functions of autograd on the kernels.

They work on rows, [T, M, C]: pixels or tokens of all samples below each other, their channels side by side, as tensors in torch's
channels_last format lie in memory. Those pass as views, others are copied.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tdformer.models.kernels import operators


class _Neurons(torch.autograd.Function):
    """Saves the currents."""

    @staticmethod
    def forward(ctx: Any, x_TM: torch.Tensor, v_M: torch.Tensor, v_threshold: float) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.v_threshold = v_threshold
        ctx.save_for_backward(x_TM, v_M)
        ctx.set_materialize_grads(False)
        return operators.neurons(x_TM, v_M, v_threshold)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        x_TM, v_M = ctx.saved_tensors
        return *operators.neurons_backward(x_TM, v_M, *_given(gradients, x_TM), ctx.v_threshold), None


class _NormNeurons(torch.autograd.Function):
    """BatchNorm with the statistics of the batch, then neurons. Saves BatchNorm's input."""

    @staticmethod
    def forward(
        ctx: Any,
        y_TMC: torch.Tensor,
        v_MC: torch.Tensor,
        weight_C: torch.Tensor,
        bias_C: torch.Tensor,
        mean_C: torch.Tensor,
        invstd_C: torch.Tensor,
        v_threshold: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.v_threshold = v_threshold
        ctx.save_for_backward(y_TMC, v_MC, weight_C, bias_C, mean_C, invstd_C)
        ctx.set_materialize_grads(False)
        scale_C = invstd_C * weight_C
        return operators.norm_neurons(y_TMC, v_MC, scale_C, bias_C - mean_C * scale_C, v_threshold)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        y_TMC, v_MC, *norm = ctx.saved_tensors
        return *operators.norm_neurons_backward(y_TMC, v_MC, *norm, *_given(gradients, y_TMC), ctx.v_threshold), None, None, None


def _given(gradients: tuple[torch.Tensor | None, ...], x_TM: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Gradients of spikes and last potentials, as the kernels take them."""
    of_spikes_TM, of_v_M = gradients
    of_spikes_TM = torch.zeros_like(x_TM) if of_spikes_TM is None else of_spikes_TM
    return of_spikes_TM.contiguous(), None if of_v_M is None else of_v_M.contiguous()


def lif(x_TB: torch.Tensor, v_B: torch.Tensor, v_threshold: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Currents [T, B, …] and first potentials [B, …] -> spikes and last potentials, lying in memory as the currents do."""
    order = sorted(range(1, x_TB.dim()), key=x_TB.stride().__getitem__, reverse=True)
    x_in_order = x_TB.permute(0, *order)
    v_in_order = v_B.permute([axis - 1 for axis in order])
    spikes_TM, v_M = _Neurons.apply(_dense_steps(x_in_order.flatten(1)), v_in_order.flatten(), v_threshold)
    back = [0, *(1 + order.index(axis) for axis in range(1, x_TB.dim()))]
    return spikes_TM.view(x_in_order.shape).permute(back), v_M.view(v_in_order.shape).permute([axis - 1 for axis in back[1:]])


def norm_lif(y_TBC: torch.Tensor, v_BC: torch.Tensor, v_threshold: float, norm: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """What the synapse gave, [T, B, C, …], and first potentials [B, C, …] -> spikes and last potentials, in channels_last."""
    y_rows, v_rows = y_TBC.movedim(2, -1), v_BC.movedim(1, -1)
    y_TMC, v_MC = y_rows.flatten(1, -2).contiguous(), v_rows.flatten(0, -2).contiguous()
    spikes_TMC, v_MC = _NormNeurons.apply(y_TMC, v_MC, norm.weight, norm.bias, *_statistics(norm, y_TBC), v_threshold)
    return spikes_TMC.view(y_rows.shape).movedim(-1, 2), v_MC.view(v_rows.shape).movedim(-1, 1)


def takes(norm: nn.Module) -> bool:
    """Whether its statistics are those of this batch on this rank. In evaluation, and over ranks, BatchNorm is torch's own."""
    return isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d) and norm.training


def _statistics(norm: Any, y_TBC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and 1/standard deviation of the batch; moves the running statistics on, as torch's BatchNorm does."""
    running = (norm.running_mean, norm.running_var) if norm.track_running_stats else (None, None)
    if norm.track_running_stats:
        norm.num_batches_tracked.add_(1)
    if y_TBC.is_meta:  # torch has no such operator there
        return torch.empty_like(norm.weight), torch.empty_like(norm.weight)
    y_BCHW = y_TBC.flatten(0, 1)[(...,) + (None,) * (5 - y_TBC.dim())]  # it knows channels_last by four axes
    with torch.no_grad():
        mean_C, variance_C = torch.batch_norm_update_stats(y_BCHW, running[0], running[1], norm.momentum)
        return mean_C, (variance_C + norm.eps).rsqrt()


def _dense_steps(x_TM: torch.Tensor) -> torch.Tensor:
    """Each time step without gaps in memory; all steps may be one and the same, as those of an image's current are."""
    return x_TM if x_TM[0].is_contiguous() else x_TM.contiguous()
