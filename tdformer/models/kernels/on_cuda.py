"""Runs the functions of formulas.py on CUDA, by the kernels of triton_kernels.py. Shapes are those of formulas.py.

The order of sums over rows depends on the sizes alone, and there are no atomics. So the same input gives the same bits.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from tdformer.models.kernels.formulas import potential_type
from tdformer.models.kernels.triton_kernels import attention_backward_kernel, attention_kernel, backward_kernel, fire_kernel, sums_kernel

OPTIONS: dict[str, Any] = {"num_warps": 4, "enable_fp_fusion": False}
"""Options of all kernels. Fused multiply-add is off, so that they round as torch does under every version of Triton."""
TOKENS = 32
"""Tokens that attention takes at a time. For heads of 64 channels that is as many as registers hold."""
SUM_COLUMNS = 64
SUM_PROGRAMS = 512
"""Largest number of programs that each sum a part of the rows. torch then adds up their sums."""


def neurons(x_TM: torch.Tensor, v_M: torch.Tensor | None, v_threshold: float, keeps_last: bool) -> tuple[torch.Tensor, torch.Tensor]:
    return _fire(x_TM, v_M, (None, None), v_threshold, keeps_last)


def norm_neurons(
    y_TMC: torch.Tensor,
    v_MC: torch.Tensor | None,
    scale_C: torch.Tensor,
    shift_C: torch.Tensor,
    v_threshold: float,
    keeps_last: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    return _fire(y_TMC, v_MC, (scale_C, shift_C), v_threshold, keeps_last)


def neurons_backward(
    x_TM: torch.Tensor, v_M: torch.Tensor | None, of_spikes_TM: torch.Tensor, of_v_M: torch.Tensor | None, v_threshold: float
) -> tuple[torch.Tensor, torch.Tensor]:
    return _backward(x_TM, v_M, of_spikes_TM, of_v_M, (None,) * 4, v_threshold)


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
    scale_C = invstd_C * weight_C
    shift_C = bias_C - mean_C * scale_C
    of_bias_C, moment_C = _sums(y_TMC, v_MC, of_spikes_TMC, of_v_MC, (scale_C, shift_C, mean_C), v_threshold)
    of_weight_C = moment_C * invstd_C
    values = y_TMC.shape[0] * y_TMC.shape[1]
    # of_y = (of_x - of_bias / values - (y - mean) * invstd * of_weight / values) * scale, as one affine map of y per channel
    slope_C = invstd_C * of_weight_C / values
    norm = (scale_C, shift_C, slope_C, of_bias_C / values - mean_C * slope_C)
    of_y_TMC, of_first_MC = _backward(y_TMC, v_MC, of_spikes_TMC, of_v_MC, norm, v_threshold)
    return of_y_TMC, of_first_MC, of_weight_C, of_bias_C


def attention(q_RNC: torch.Tensor, k_RNC: torch.Tensor, v_RNC: torch.Tensor, heads: int, scale: float) -> torch.Tensor:
    y_RNC = torch.empty_like(q_RNC)
    _, tokens, channels = q_RNC.shape
    attention_kernel[(len(q_RNC), heads)](q_RNC, k_RNC, v_RNC, y_RNC, tokens, scale, channels, channels // heads, TOKENS, **OPTIONS)
    return y_RNC


def attention_backward(
    q_RNC: torch.Tensor, k_RNC: torch.Tensor, v_RNC: torch.Tensor, of_y_RNC: torch.Tensor, heads: int, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    of_q_RNC, of_k_RNC, of_v_RNC = (torch.empty_like(x_RNC) for x_RNC in (q_RNC, k_RNC, v_RNC))
    _, tokens, channels = q_RNC.shape
    attention_backward_kernel[(len(q_RNC), heads)](
        q_RNC, k_RNC, v_RNC, of_y_RNC, of_q_RNC, of_k_RNC, of_v_RNC, tokens, scale, channels, channels // heads, TOKENS, **OPTIONS
    )
    return of_q_RNC, of_k_RNC, of_v_RNC


Given = torch.Tensor | None


def _fire(
    x_TM: torch.Tensor, v_M: Given, affine: tuple[Given, ...], v_threshold: float, keeps_last: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    spikes_TM, last_M = x_TM.new_empty(x_TM.shape), _like_a_step(x_TM, keeps_last)
    neurons, sizes = x_TM[0].numel(), _sizes(x_TM, affine[0])
    fire_kernel[(triton.cdiv(neurons, sizes["BLOCK"]),)](
        x_TM, v_M, *affine, spikes_TM, last_M if keeps_last else None, neurons, x_TM.stride(0), v_threshold, **sizes, **OPTIONS
    )
    return spikes_TM, last_M


def _backward(
    x_TM: torch.Tensor, v_M: Given, of_spikes_TM: torch.Tensor, of_v_M: Given, norm: tuple[Given, ...], v_threshold: float
) -> tuple[torch.Tensor, torch.Tensor]:
    of_x_TM, of_first_M = x_TM.new_empty(x_TM.shape), _like_a_step(x_TM, v_M is not None)
    neurons, sizes = x_TM[0].numel(), _sizes(x_TM, norm[0])
    backward_kernel[(triton.cdiv(neurons, sizes["BLOCK"]),)](
        x_TM, v_M, of_spikes_TM, of_v_M, *norm, of_x_TM, None if v_M is None else of_first_M,
        neurons, x_TM.stride(0), v_threshold, **sizes, **OPTIONS,
    )  # fmt: skip
    return of_x_TM, of_first_M


def _sums(
    y_TMC: torch.Tensor,
    v_MC: Given,
    of_spikes_TMC: torch.Tensor,
    of_v_MC: Given,
    affine: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    v_threshold: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return by channel the sums of the currents' gradients, and of these times (y - mean). affine: scale, shift, mean."""
    _, rows, channels = y_TMC.shape
    sizes = _sizes(y_TMC, affine[0])
    block = sizes.pop("BLOCK") // SUM_COLUMNS
    per_program = triton.cdiv(triton.cdiv(rows, SUM_PROGRAMS), block) * block
    programs = triton.cdiv(rows, per_program)
    parts_2PC = affine[0].new_empty(2, programs, channels)
    sums_kernel[(programs, triton.cdiv(channels, SUM_COLUMNS))](
        y_TMC, v_MC, of_spikes_TMC, of_v_MC, *affine, parts_2PC, rows * channels, rows, per_program, v_threshold,
        ROWS=block, COLUMNS=SUM_COLUMNS, **sizes, **OPTIONS,
    )  # fmt: skip
    sums_C, moments_C = parts_2PC.sum(1)
    return sums_C, moments_C


def _like_a_step(x_TM: torch.Tensor, is_wanted: bool) -> torch.Tensor:
    return torch.empty(x_TM.shape[1:] if is_wanted else (0,), dtype=potential_type(x_TM.dtype), device=x_TM.device)


def _sizes(x_TM: torch.Tensor, scale_C: Given) -> dict[str, Any]:
    """Return the sizes that a kernel is compiled for. BLOCK: neurons of a program, as many as keep all their time steps in registers."""
    steps = len(x_TM)
    return {
        "C": 1 if scale_C is None else len(scale_C),
        "T": steps,
        "BLOCK": 1024 if steps <= 4 else 512 if steps <= 8 else 256,
        "DTYPE": {torch.float32: tl.float32, torch.float64: tl.float64}[potential_type(x_TM.dtype)],
    }
