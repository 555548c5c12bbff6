"""The kernels on CUDA: the functions of formulas.py, done by those of triton_kernels.py. Shapes as there.

Sums over rows are added in an order that depends on the sizes alone, without atomics: the same input gives the same bits.
"""

from __future__ import annotations

from typing import Any

import torch
import triton

from tdformer.models.kernels.triton_kernels import backward_kernel, fire_kernel, sums_kernel

OPTIONS: dict[str, Any] = {"num_warps": 4, "enable_fp_fusion": False}
"""No multiply-add in one: as torch rounds, whatever Triton's version."""
SUM_COLUMNS = 64
SUM_PROGRAMS = 512
"""At most so many parts of the rows are summed apart, and their sums then by torch."""


def neurons(x_TM: torch.Tensor, v_M: torch.Tensor, v_threshold: float) -> tuple[torch.Tensor, torch.Tensor]:
    return _fire(x_TM, v_M, None, None, v_threshold)


def norm_neurons(
    y_TMC: torch.Tensor, v_MC: torch.Tensor, scale_C: torch.Tensor, shift_C: torch.Tensor, v_threshold: float
) -> tuple[torch.Tensor, torch.Tensor]:
    return _fire(y_TMC, v_MC, scale_C, shift_C, v_threshold)


def neurons_backward(
    x_TM: torch.Tensor, v_M: torch.Tensor, of_spikes_TM: torch.Tensor, of_v_M: torch.Tensor | None, v_threshold: float
) -> tuple[torch.Tensor, torch.Tensor]:
    return _backward(x_TM, v_M, of_spikes_TM, of_v_M, v_threshold)


def norm_neurons_backward(
    y_TMC: torch.Tensor,
    v_MC: torch.Tensor,
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
    of_bias_C, of_weight_C = _sums(y_TMC, v_MC, scale_C, shift_C, mean_C, invstd_C, of_spikes_TMC, of_v_MC, v_threshold)
    values = y_TMC.shape[0] * y_TMC.shape[1]
    # of_y = (of_x - of_bias / values - (y - mean) * invstd * of_weight / values) * scale, as one affine map of y per channel
    slope_C = invstd_C * of_weight_C / values
    norm = (scale_C, shift_C, slope_C, of_bias_C / values - mean_C * slope_C)
    of_y_TMC, of_v_MC = _backward(y_TMC, v_MC, of_spikes_TMC, of_v_MC, v_threshold, norm)
    return of_y_TMC, of_v_MC, of_weight_C, of_bias_C


def _fire(
    x_TM: torch.Tensor, v_M: torch.Tensor, scale_C: torch.Tensor | None, shift_C: torch.Tensor | None, v_threshold: float
) -> tuple[torch.Tensor, torch.Tensor]:
    spikes_TM, last_M = x_TM.new_empty(x_TM.shape), torch.empty_like(v_M)
    block = _block(len(x_TM))
    channels = 1 if scale_C is None else len(scale_C)
    fire_kernel[(triton.cdiv(v_M.numel(), block),)](
        x_TM, v_M, scale_C, shift_C, spikes_TM, last_M, v_M.numel(), x_TM.stride(0), v_threshold, channels, len(x_TM), block, **OPTIONS
    )
    return spikes_TM, last_M


def _backward(
    x_TM: torch.Tensor,
    v_M: torch.Tensor,
    of_spikes_TM: torch.Tensor,
    of_v_M: torch.Tensor | None,
    v_threshold: float,
    norm: tuple[torch.Tensor, ...] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    of_x_TM, of_first_M = x_TM.new_empty(x_TM.shape), torch.empty_like(v_M)
    block = _block(len(x_TM))
    channels = 1 if norm is None else len(norm[0])
    backward_kernel[(triton.cdiv(v_M.numel(), block),)](
        x_TM, v_M, of_spikes_TM, of_v_M, *(norm or (None,) * 4), of_x_TM, of_first_M,
        v_M.numel(), x_TM.stride(0), v_threshold, channels, len(x_TM), block, **OPTIONS,
    )  # fmt: skip
    return of_x_TM, of_first_M


def _sums(
    y_TMC: torch.Tensor,
    v_MC: torch.Tensor,
    scale_C: torch.Tensor,
    shift_C: torch.Tensor,
    mean_C: torch.Tensor,
    invstd_C: torch.Tensor,
    of_spikes_TMC: torch.Tensor,
    of_v_MC: torch.Tensor | None,
    v_threshold: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of bias and weight."""
    steps, rows, channels = y_TMC.shape
    block = max(_block(steps) // SUM_COLUMNS, 1)
    per_program = triton.cdiv(triton.cdiv(rows, SUM_PROGRAMS), block) * block
    programs = triton.cdiv(rows, per_program)
    parts_2PC = torch.empty(2, programs, channels, dtype=v_MC.dtype, device=v_MC.device)
    sums_kernel[(programs, triton.cdiv(channels, SUM_COLUMNS))](
        y_TMC, v_MC, of_spikes_TMC, of_v_MC, scale_C, shift_C, mean_C, parts_2PC,
        v_MC.numel(), rows, per_program, v_threshold, channels, steps, block, SUM_COLUMNS, **OPTIONS,
    )  # fmt: skip
    of_bias_C, moment_C = parts_2PC.sum(1)
    return of_bias_C, moment_C * invstd_C


def _block(steps: int) -> int:
    """Neurons of a program: as many as keep all their time steps in registers."""
    return 1024 if steps <= 4 else 512 if steps <= 8 else 256
