"""BatchNorm and LIF neurons of all time steps as one kernel each way, made by torch.compile: C++ on a CPU, Triton on a GPU.

The fast path beside the plain one of neurons.py and torch's BatchNorm. What the plain path writes to memory between its dozen
operations per time step stays in registers here, and kept for the backward pass is only what the synapse gave, from which the
backward pass computes the potentials again: half of what the plain path keeps. Currents and potentials are float32 inside
(float64 for float64), so that at bf16 the current is not rounded between BatchNorm and neurons.

Shapes: T time steps, B samples, C channels, N pixels or tokens, M all neurons. `current` is the affine map y * scale + shift of a channel.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from typing import Any

import torch
import torch.fx.experimental._config
from spikingjelly.activation_based import surrogate
from torch import nn

TAU = 2.0
SURROGATE = surrogate.Sigmoid(alpha=4.0)
MOST_STEPS = 16
"""A kernel has its time steps written out; with more of them neurons take the plain path."""
KERNELS_PER_FUNCTION = 64
"""A kernel is compiled for each number of time steps, type and memory layout; torch gives up after 8 of them."""


class FusedLIF(torch.autograd.Function):
    """Neurons alone, M of them. Saves their input."""

    @staticmethod
    def forward(ctx: Any, x_TM: torch.Tensor, v_M: torch.Tensor, v_threshold: float) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.v_threshold = v_threshold
        ctx.save_for_backward(x_TM, v_M)
        ctx.set_materialize_grads(False)
        return neurons(x_TM, v_M, None, None, v_threshold)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        x_TM, v_M = ctx.saved_tensors
        grads = _given(gradients, x_TM, v_M)
        return *neurons_backward(x_TM, v_M, *grads, ctx.v_threshold), None


class FusedNormLIF(torch.autograd.Function):
    """BatchNorm with the statistics of the batch, then neurons. Saves BatchNorm's input."""

    @staticmethod
    def forward(
        ctx: Any,
        y_TBCN: torch.Tensor,
        v_BCN: torch.Tensor,
        weight_C: torch.Tensor,
        bias_C: torch.Tensor,
        mean_C: torch.Tensor,
        invstd_C: torch.Tensor,
        v_threshold: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.v_threshold = v_threshold
        ctx.save_for_backward(y_TBCN, v_BCN, weight_C, bias_C, mean_C, invstd_C)
        ctx.set_materialize_grads(False)
        scale_C = invstd_C * weight_C
        return neurons(y_TBCN, v_BCN, scale_C, bias_C - mean_C * scale_C, v_threshold)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        y_TBCN, v_BCN, *norm = ctx.saved_tensors
        grads = _given(gradients, y_TBCN, v_BCN)
        return *norm_neurons_backward(y_TBCN, v_BCN, *norm, *grads, ctx.v_threshold), None, None, None


def lif(x_TB: torch.Tensor, v_B: torch.Tensor, v_threshold: float, norm: nn.Module | None) -> tuple[torch.Tensor, torch.Tensor]:
    """x_TB: [T, B, …], behind `norm` if that is None, else [T, B, C, …] before it. Returns spikes like x_TB, and the last potentials."""
    if norm is not None and not fuses(norm):
        x_TB, norm = norm(x_TB.flatten(0, 1)).unflatten(0, x_TB.shape[:2]), None
    if norm is None:
        spikes_TM, v_M = FusedLIF.apply(x_TB.flatten(1), v_B.flatten(), v_threshold)
        return spikes_TM.view(x_TB.shape), v_M.view(v_B.shape)
    statistics = _statistics(norm, x_TB.flatten(0, 1))
    spikes_TBCN, v_BCN = FusedNormLIF.apply(x_TB.flatten(3), v_B.flatten(2), norm.weight, norm.bias, *statistics, v_threshold)
    return spikes_TBCN.view(x_TB.shape), v_BCN.view(v_B.shape)


def fuses(norm: nn.Module) -> bool:
    """Whether its statistics are those of this batch on this rank. In evaluation, and over ranks, BatchNorm is torch's own."""
    return isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d) and norm.training


def _statistics(norm: Any, y_BC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and 1/standard deviation of the batch; moves the running statistics on, as torch's BatchNorm does."""
    running = (norm.running_mean, norm.running_var) if norm.track_running_stats else (None, None)
    if norm.track_running_stats:
        norm.num_batches_tracked.add_(1)
    if y_BC.is_meta:  # torch has no such operator there
        return torch.empty_like(norm.weight), torch.empty_like(norm.weight)
    with torch.no_grad():
        mean_C, variance_C = torch.batch_norm_update_stats(y_BC, *running, norm.momentum)
        return mean_C, (variance_C + norm.eps).rsqrt()


def _given(
    gradients: tuple[torch.Tensor | None, ...], x_TBCN: torch.Tensor, v_BCN: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Gradients of spikes and last potentials; those of the spikes in x's layout, so that there is one kernel for them."""
    of_spikes, of_v = gradients
    if of_spikes is None:
        return torch.zeros_like(x_TBCN), of_v
    if of_spikes.stride() != torch.empty_like(x_TBCN, device="meta").stride():
        of_spikes = torch.empty_like(x_TBCN, dtype=of_spikes.dtype).copy_(of_spikes)
    return of_spikes, of_v


# --- the kernels, as torch.compile reads them; run as they are, they are what they compute ------------------------------


def _charge(
    y_TBCN: torch.Tensor, v_BCN: torch.Tensor, scale_C: torch.Tensor | None, shift_C: torch.Tensor | None, v_threshold: float
) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
    """Of each time step the potentials before their reset and the spikes; and the last potentials."""
    charged, spikes = [], []
    for y_BCN in y_TBCN:
        x_BCN = y_BCN.to(v_BCN.dtype)
        if scale_C is not None and shift_C is not None:
            x_BCN = x_BCN * scale_C[:, None] + shift_C[:, None]
        h_BCN = v_BCN + (x_BCN - v_BCN) / TAU
        spikes_BCN = (h_BCN >= v_threshold).to(v_BCN.dtype)
        v_BCN = (1 - spikes_BCN) * h_BCN
        charged.append(h_BCN)
        spikes.append(spikes_BCN)
    return charged, spikes, v_BCN


def _neurons(
    y_TBCN: torch.Tensor, v_BCN: torch.Tensor, scale_C: torch.Tensor | None, shift_C: torch.Tensor | None, v_threshold: float
) -> tuple[torch.Tensor, torch.Tensor]:
    _, spikes, v_BCN = _charge(y_TBCN, v_BCN, scale_C, shift_C, v_threshold)
    return torch.stack([step.to(y_TBCN.dtype) for step in spikes]), v_BCN


def _current_gradients(
    charged: list[torch.Tensor], spikes: list[torch.Tensor], of_spikes_TBCN: torch.Tensor, of_v_BCN: torch.Tensor | None, v_threshold: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of the currents, [T, B, C, N] in the potentials' type, and of the first potentials. Reset is detached."""
    carry_BCN, gradients = torch.zeros_like(charged[0]) if of_v_BCN is None else of_v_BCN, []
    for h_BCN, spikes_BCN, of_spikes_BCN in reversed(list(zip(charged, spikes, of_spikes_TBCN, strict=True))):
        sigmoid_BCN = torch.sigmoid(SURROGATE.alpha * (h_BCN - v_threshold))
        slope_BCN = (1 - sigmoid_BCN) * sigmoid_BCN * SURROGATE.alpha
        of_h_BCN = of_spikes_BCN.to(h_BCN.dtype) * slope_BCN + carry_BCN * (1 - spikes_BCN)
        gradients.append(of_h_BCN / TAU)
        carry_BCN = of_h_BCN - of_h_BCN / TAU
    return torch.stack(gradients[::-1]), carry_BCN


def _neurons_backward(
    x_TBCN: torch.Tensor, v_BCN: torch.Tensor, of_spikes_TBCN: torch.Tensor, of_v_BCN: torch.Tensor | None, v_threshold: float
) -> tuple[torch.Tensor, torch.Tensor]:
    charged, spikes, _ = _charge(x_TBCN, v_BCN, None, None, v_threshold)
    of_x_TBCN, of_v_BCN = _current_gradients(charged, spikes, of_spikes_TBCN, of_v_BCN, v_threshold)
    return of_x_TBCN.to(x_TBCN.dtype), of_v_BCN


def _norm_neurons_backward(
    y_TBCN: torch.Tensor,
    v_BCN: torch.Tensor,
    weight_C: torch.Tensor,
    bias_C: torch.Tensor,
    mean_C: torch.Tensor,
    invstd_C: torch.Tensor,
    of_spikes_TBCN: torch.Tensor,
    of_v_BCN: torch.Tensor | None,
    v_threshold: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of y, the first potentials, weight and bias."""
    scale_C = invstd_C * weight_C
    charged, spikes, _ = _charge(y_TBCN, v_BCN, scale_C, bias_C - mean_C * scale_C, v_threshold)
    of_x_TBCN, of_v_BCN = _current_gradients(charged, spikes, of_spikes_TBCN, of_v_BCN, v_threshold)
    normal_TBCN = (y_TBCN.to(v_BCN.dtype) - mean_C[:, None]) * invstd_C[:, None]
    of_bias_C = of_x_TBCN.sum((0, 1, 3))
    of_weight_C = (of_x_TBCN * normal_TBCN).sum((0, 1, 3))
    values = y_TBCN.numel() // y_TBCN.shape[2]
    of_y_TBCN = (of_x_TBCN - (of_bias_C / values)[:, None] - normal_TBCN * (of_weight_C / values)[:, None]) * scale_C[:, None]
    return of_y_TBCN.to(y_TBCN.dtype), of_v_BCN, of_weight_C, of_bias_C


# --- compiling ----------------------------------------------------------------------------------------------------------


def _operator(kernel: Callable[..., Any]) -> Any:
    """One operator to torch, so that profilers and memory plans see what goes in and what comes out; on the meta device too."""

    @wraps(kernel)
    def compiled(*inputs: Any) -> Any:
        with torch.fx.experimental._config.patch(use_duck_shape=False):  # or sizes that happen to be equal would have to stay so
            return _compiled(kernel)(*inputs)

    operator = torch.library.custom_op(f"tdformer::{kernel.__name__.removeprefix('_')}", compiled, mutates_args=())
    operator.register_fake(kernel)
    return operator


@cache
def _compiled(kernel: Callable[..., Any]) -> Callable[..., Any]:
    import torch._dynamo
    import torch._inductor.config

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, KERNELS_PER_FUNCTION)
    torch._inductor.config.compile_threads = 1  # no helper processes, which signals to a job's processes would reach
    return torch.compile(kernel, fullgraph=True, dynamic=True)  # one kernel for all sizes, but for those of 1


neurons = _operator(_neurons)
neurons_backward = _operator(_neurons_backward)
norm_neurons_backward = _operator(_norm_neurons_backward)


def reason_against(device: torch.device) -> str | None:
    """Why kernels cannot be compiled for this device on this machine (no compiler, say); None if they can."""
    x_TM, v_M = torch.ones(2, 8, device=device), torch.zeros(8, device=device)
    try:
        neurons_backward(x_TM, v_M, *neurons(x_TM, v_M, None, None, 1.0), 1.0)
    except Exception as error:  # whatever a compiler, or its absence, may raise
        return f"{type(error).__name__}: {error}".strip().partition("\n")[0]
    return None
