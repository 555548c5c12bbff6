"""Defines the kernels as formulas. on_cuda.py is tested against them, and torch.compile makes C++ of them for CPUs.

Shapes: T time steps; M neurons, or rows; C channels. A row is one pixel or token of one sample. A `current` is the affine map
y * scale + shift of its channel.
"""

from __future__ import annotations

import torch

from tdformer.models.kernels.constants import ALPHA, TAU


def neurons(x_TM: torch.Tensor, v_M: torch.Tensor | None, v_threshold: float, keeps_last: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return spikes [T, M] in the currents' dtype, and the last potentials (empty unless keeps_last).

    x_TM: currents. v_M: first potentials; None for 0.
    """
    return _fire(x_TM, v_M, None, v_threshold, keeps_last)


def norm_neurons(
    y_TMC: torch.Tensor,
    v_MC: torch.Tensor | None,
    scale_C: torch.Tensor,
    shift_C: torch.Tensor,
    v_threshold: float,
    keeps_last: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the same as `neurons` for the currents y * scale + shift."""
    return _fire(y_TMC, v_MC, (scale_C, shift_C), v_threshold, keeps_last)


def neurons_backward(
    x_TM: torch.Tensor, v_M: torch.Tensor | None, of_spikes_TM: torch.Tensor, of_v_M: torch.Tensor | None, v_threshold: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of currents and first potentials (empty if there are none).

    of_spikes_TM, of_v_M: gradients of spikes and last potentials; None for 0.
    """
    of_x_TM, of_first_M = _current_gradients(_charge(x_TM, v_M, None, v_threshold)[0], of_spikes_TM, of_v_M, v_threshold)
    return torch.stack(of_x_TM).to(x_TM.dtype), _if(v_M is not None, of_first_M)


def norm_neurons_backward(
    y_TMC: torch.Tensor,
    v_MC: torch.Tensor | None,
    weight_C: torch.Tensor,
    bias_C: torch.Tensor,
    mean_C: torch.Tensor,
    invstd_C: torch.Tensor,
    of_spikes_TMC: torch.Tensor,
    of_v_MC: torch.Tensor | None,
    v_threshold: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of y, first potentials, weight and bias.

    mean, invstd: those of the batch. Gradients flow through them too.
    """
    scale_C = invstd_C * weight_C
    potentials, _ = _charge(y_TMC, v_MC, (scale_C, bias_C - mean_C * scale_C), v_threshold)
    of_x_TMC, of_first_MC = _current_gradients(potentials, of_spikes_TMC, of_v_MC, v_threshold)
    sums_MC, moments_MC = torch.zeros_like(of_first_MC), torch.zeros_like(of_first_MC)
    for y_MC, of_x_MC in zip(y_TMC, of_x_TMC, strict=True):
        sums_MC = sums_MC + of_x_MC
        moments_MC = moments_MC + of_x_MC * (y_MC.to(of_x_MC.dtype) - mean_C)
    of_bias_C, of_weight_C = sums_MC.sum(0), moments_MC.sum(0) * invstd_C
    values = y_TMC.shape[0] * y_TMC.shape[1]
    slope_C = invstd_C * of_weight_C / values
    offset_C = of_bias_C / values - mean_C * slope_C
    of_y_TMC = [
        ((of_x_MC - (y_MC.to(of_x_MC.dtype) * slope_C + offset_C)) * scale_C).to(y_TMC.dtype)
        for y_MC, of_x_MC in zip(y_TMC, of_x_TMC, strict=True)
    ]
    return torch.stack(of_y_TMC), _if(v_MC is not None, of_first_MC), of_weight_C, of_bias_C


def attention(q_RNC: torch.Tensor, k_RNC: torch.Tensor, v_RNC: torch.Tensor, heads: int, scale: float) -> torch.Tensor:
    """Return q (kᵀ v) scale within each head of C / heads channels. R: time steps times samples. N: tokens."""
    q, k, v = (_heads(x_RNC, heads) for x_RNC in (q_RNC, k_RNC, v_RNC))
    return _joined(q @ (k.mT @ v) * scale)


def attention_backward(
    q_RNC: torch.Tensor, k_RNC: torch.Tensor, v_RNC: torch.Tensor, of_y_RNC: torch.Tensor, heads: int, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of q, k and v."""
    q, k, v, of_y = (_heads(x_RNC, heads) for x_RNC in (q_RNC, k_RNC, v_RNC, of_y_RNC))
    kv, of_kv = k.mT @ v, q.mT @ (of_y * scale)
    return _joined((of_y * scale) @ kv.mT), _joined(v @ of_kv.mT), _joined(k @ of_kv)


def _heads(x_RNC: torch.Tensor, heads: int) -> torch.Tensor:
    return x_RNC.unflatten(2, (heads, -1)).transpose(1, 2)


def _joined(x_RHND: torch.Tensor) -> torch.Tensor:
    return x_RHND.transpose(1, 2).flatten(2).contiguous()


def potential_type(current: torch.dtype) -> torch.dtype:
    return torch.promote_types(current, torch.float32)


Affine = tuple[torch.Tensor, torch.Tensor] | None


def _charge(y_TM: torch.Tensor, v_M: torch.Tensor | None, affine: Affine, v_threshold: float) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return the potentials of each time step before their reset, and the last ones after it."""
    v_M = torch.zeros_like(y_TM[0], dtype=potential_type(y_TM.dtype)) if v_M is None else v_M
    potentials = []
    for y_M in y_TM:
        x_M = y_M.to(v_M.dtype)
        if affine is not None:
            x_M = x_M * affine[0] + affine[1]
        potentials.append(v_M + (x_M - v_M) / TAU)
        v_M = torch.where(potentials[-1] >= v_threshold, 0.0, potentials[-1])
    return potentials, v_M


def _fire(
    y_TM: torch.Tensor, v_M: torch.Tensor | None, affine: Affine, v_threshold: float, keeps_last: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    potentials, last_M = _charge(y_TM, v_M, affine, v_threshold)
    return torch.stack([(charged_M >= v_threshold).to(y_TM.dtype) for charged_M in potentials]), _if(keeps_last, last_M)


def _current_gradients(
    potentials: list[torch.Tensor], of_spikes_TM: torch.Tensor, of_v_M: torch.Tensor | None, v_threshold: float
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return the gradients of each step's current, in the potentials' dtype, and of the first potentials. The reset has no gradient."""
    of_v_M, gradients = torch.zeros_like(potentials[0]) if of_v_M is None else of_v_M, []
    for charged_M, of_spikes_M in reversed(list(zip(potentials, of_spikes_TM, strict=True))):
        sigmoid_M = torch.sigmoid(ALPHA * (charged_M - v_threshold))
        slope_M = (1 - sigmoid_M) * sigmoid_M * ALPHA
        of_charged_M = of_spikes_M.to(charged_M.dtype) * slope_M + torch.where(charged_M >= v_threshold, 0.0, of_v_M)
        gradients.append(of_charged_M / TAU)
        of_v_M = of_charged_M - of_charged_M / TAU
    return gradients[::-1], of_v_M


def _if(is_wanted: bool, tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor if it is wanted, else an empty one. An operator must always return a tensor."""
    return tensor if is_wanted else tensor.new_empty(0)
