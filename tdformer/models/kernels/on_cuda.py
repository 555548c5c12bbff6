"""The kernels in Triton, for CUDA. Each reads and writes every value once; what is between them stays in registers.

Shapes: T time steps, M neurons (kernels that know of no channels) or rows, C channels; a row is one pixel or token of one sample.
Sums over rows are added in an order that depends on the sizes alone, without atomics: the same input gives the same bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from tdformer.models.kernels.constants import ALPHA, TAU

_DECAY = tl.constexpr(1 / TAU)
_ALPHA = tl.constexpr(ALPHA)

THREADS = 128
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
    norm = (mean_C, slope_C, of_bias_C / values - mean_C * slope_C)
    of_y_TMC, of_v_MC = _backward(y_TMC, v_MC, of_spikes_TMC, of_v_MC, v_threshold, (scale_C, shift_C, *norm[1:]))
    return of_y_TMC, of_v_MC, of_weight_C, of_bias_C


# --- calling them -------------------------------------------------------------------------------------------------------


def _fire(
    x_TM: torch.Tensor, v_M: torch.Tensor, scale_C: torch.Tensor | None, shift_C: torch.Tensor | None, v_threshold: float
) -> tuple[torch.Tensor, torch.Tensor]:
    spikes_TM, last_M = torch.empty_like(x_TM), torch.empty_like(v_M)
    block = _block(len(x_TM))
    channels = 1 if scale_C is None else len(scale_C)
    _fire_kernel[(triton.cdiv(v_M.numel(), block),)](
        x_TM, v_M, scale_C, shift_C, spikes_TM, last_M, v_M.numel(), v_threshold, channels, len(x_TM), block, num_warps=THREADS // 32
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
    of_x_TM, of_first_M = torch.empty_like(x_TM), torch.empty_like(v_M)
    block = _block(len(x_TM))
    channels = 1 if norm is None else len(norm[0])
    _backward_kernel[(triton.cdiv(v_M.numel(), block),)](
        x_TM, v_M, of_spikes_TM, of_v_M, *(norm or (None,) * 4), of_x_TM, of_first_M,
        v_M.numel(), v_threshold, channels, len(x_TM), block, num_warps=THREADS // 32,
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
    _sums_kernel[(programs, triton.cdiv(channels, SUM_COLUMNS))](
        y_TMC, v_MC, of_spikes_TMC, of_v_MC, scale_C, shift_C, mean_C, parts_2PC,
        v_MC.numel(), rows, per_program, v_threshold, channels, steps, block, SUM_COLUMNS, num_warps=THREADS // 32,
    )  # fmt: skip
    of_bias_C, moment_C = parts_2PC.sum(1)
    return of_bias_C, moment_C * invstd_C


def _block(steps: int) -> int:
    """Neurons of a program: as many as keep all their time steps in registers."""
    return 1024 if steps <= 4 else 512 if steps <= 8 else 256


# --- the kernels --------------------------------------------------------------------------------------------------------


@triton.jit
def _charge(v, x, v_threshold):
    """One time step: the potential before its reset, and after it."""
    charged = v + (x - v) * _DECAY
    return charged, tl.where(charged >= v_threshold, 0.0, charged)


@triton.jit
def _current_gradient(of_spikes, of_v, charged, v_threshold):
    """One time step backwards: the gradients of its current, and of the potential before it. The reset is detached."""
    sigmoid = 1 / (1 + tl.exp(-_ALPHA * (charged - v_threshold)))
    of_charged = of_spikes * ((1 - sigmoid) * sigmoid * _ALPHA) + tl.where(charged >= v_threshold, 0.0, of_v)
    return of_charged * _DECAY, of_charged - of_charged * _DECAY


@triton.jit
def _fire_kernel(
    x_ptr, v_ptr, scale_ptr, shift_ptr, spikes_ptr, last_ptr, neurons, v_threshold,
    C: tl.constexpr, T: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    neuron = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = neuron < neurons
    v = tl.load(v_ptr + neuron, inside, other=0.0)
    if scale_ptr is not None:
        scale = tl.load(scale_ptr + neuron % C)
        shift = tl.load(shift_ptr + neuron % C)
    at = neuron
    for _ in tl.static_range(T):
        x = tl.load(x_ptr + at, inside, other=0.0).to(v.dtype)
        if scale_ptr is not None:
            x = x * scale + shift
        charged, v = _charge(v, x, v_threshold)
        tl.store(spikes_ptr + at, (charged >= v_threshold).to(spikes_ptr.dtype.element_ty), inside)
        at += neurons
    tl.store(last_ptr + neuron, v, inside)


@triton.jit
def _backward_kernel(
    x_ptr, v_ptr, of_spikes_ptr, of_v_ptr, scale_ptr, shift_ptr, slope_ptr, offset_ptr, of_x_ptr, of_first_ptr, neurons, v_threshold,
    C: tl.constexpr, T: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """slope, offset: what BatchNorm's backward pass takes off the gradient of a current, slope * y + offset."""
    neuron = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = neuron < neurons
    v = tl.load(v_ptr + neuron, inside, other=0.0)
    if scale_ptr is not None:
        scale = tl.load(scale_ptr + neuron % C)
        shift = tl.load(shift_ptr + neuron % C)
        slope = tl.load(slope_ptr + neuron % C)
        offset = tl.load(offset_ptr + neuron % C)
    xs = ()
    potentials = ()
    at = neuron
    for _ in tl.static_range(T):
        x = tl.load(x_ptr + at, inside, other=0.0).to(v.dtype)
        xs = xs + (x,)
        if scale_ptr is not None:
            x = x * scale + shift
        charged, v = _charge(v, x, v_threshold)
        potentials = potentials + (charged,)
        at += neurons
    if of_v_ptr is not None:
        of_v = tl.load(of_v_ptr + neuron, inside, other=0.0)
    else:
        of_v = tl.zeros_like(v)
    for t in tl.static_range(T - 1, -1, -1):
        at -= neurons
        of_spikes = tl.load(of_spikes_ptr + at, inside, other=0.0).to(v.dtype)
        of_x, of_v = _current_gradient(of_spikes, of_v, potentials[t], v_threshold)
        if scale_ptr is not None:
            of_x = (of_x - (xs[t] * slope + offset)) * scale
        tl.store(of_x_ptr + at, of_x.to(of_x_ptr.dtype.element_ty), inside)
    tl.store(of_first_ptr + neuron, of_v, inside)


@triton.jit
def _sums_kernel(
    y_ptr, v_ptr, of_spikes_ptr, of_v_ptr, scale_ptr, shift_ptr, mean_ptr, parts_ptr, neurons, rows, per_program, v_threshold,
    C: tl.constexpr, T: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Of per_program rows the sums of the currents' gradients, and of these times (y - mean), by channel."""
    channel = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    exists = channel < C
    scale = tl.load(scale_ptr + channel, exists, other=0.0)[None, :]
    shift = tl.load(shift_ptr + channel, exists, other=0.0)[None, :]
    mean = tl.load(mean_ptr + channel, exists, other=0.0)[None, :]
    sums = tl.zeros((ROWS, COLUMNS), v_ptr.dtype.element_ty)
    moments = tl.zeros((ROWS, COLUMNS), v_ptr.dtype.element_ty)
    first = tl.program_id(0) * per_program
    for start in range(first, first + per_program, ROWS):
        row = start + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & exists[None, :]
        neuron = row[:, None].to(tl.int64) * C + channel[None, :]
        v = tl.load(v_ptr + neuron, inside, other=0.0)
        ys = ()
        potentials = ()
        at = neuron
        for _ in tl.static_range(T):
            y = tl.load(y_ptr + at, inside, other=0.0).to(v.dtype)
            ys = ys + (y,)
            charged, v = _charge(v, y * scale + shift, v_threshold)
            potentials = potentials + (charged,)
            at += neurons
        if of_v_ptr is not None:
            of_v = tl.load(of_v_ptr + neuron, inside, other=0.0)
        else:
            of_v = tl.zeros_like(v)
        for t in tl.static_range(T - 1, -1, -1):
            at -= neurons
            of_spikes = tl.load(of_spikes_ptr + at, inside, other=0.0).to(v.dtype)
            of_x, of_v = _current_gradient(of_spikes, of_v, potentials[t], v_threshold)
            sums += of_x
            moments += of_x * (ys[t] - mean)
    part = tl.program_id(0) * C + channel
    tl.store(parts_ptr + part, tl.sum(sums, 0), exists)
    tl.store(parts_ptr + tl.num_programs(0) * C + part, tl.sum(moments, 0), exists)
