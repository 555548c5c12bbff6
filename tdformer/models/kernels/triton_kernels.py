"""The kernels in Triton. Each value is read and written once, and intermediate values stay in registers.

T: time steps. C: channels. Neurons are numbered through all rows and channels. Those of the next time step lie `neurons` further on in
memory, and their currents x_step (0 if every time step has the same currents). DTYPE is the dtype of the potentials.

Some pointers may be None: scale and its companions, if there is no BatchNorm before the neurons; v, the first potentials, if they are 0;
of_v, the gradients of the last potentials, if they are 0; last and of_first, the places for the last potentials and for the gradients of
the first ones, if they are not wanted.
"""

import triton
import triton.language as tl

from tdformer.models.kernels.constants import ALPHA, TAU

_DECAY = tl.constexpr(1 / TAU)
_ALPHA = tl.constexpr(ALPHA)


@triton.jit
def _given_or_0(ptr, neuron, inside, DTYPE: tl.constexpr):
    if ptr is not None:
        values = tl.load(ptr + neuron, inside, other=0.0)
    else:
        values = tl.zeros(neuron.shape, DTYPE)
    return values


@triton.jit
def _charge(v, x, v_threshold):
    """Compute one time step. Return the potential before its reset, and after it."""
    charged = v + (x - v) * _DECAY
    return charged, tl.where(charged >= v_threshold, 0.0, charged)


@triton.jit
def _current_gradient(of_spikes, of_v, charged, v_threshold):
    """Compute one time step backwards. Return the gradients of its current and of the potential before it. The reset has no gradient."""
    sigmoid = 1 / (1 + tl.exp((charged - v_threshold) * -_ALPHA))
    of_charged = of_spikes * ((1 - sigmoid) * sigmoid * _ALPHA) + tl.where(charged >= v_threshold, 0.0, of_v)
    return of_charged * _DECAY, of_charged - of_charged * _DECAY


@triton.jit
def fire_kernel(
    x_ptr, v_ptr, scale_ptr, shift_ptr, spikes_ptr, last_ptr, neurons, x_step, v_threshold,
    C: tl.constexpr, T: tl.constexpr, BLOCK: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    neuron = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = neuron < neurons
    v = _given_or_0(v_ptr, neuron, inside, DTYPE)
    if scale_ptr is not None:
        scale = tl.load(scale_ptr + neuron % C)
        shift = tl.load(shift_ptr + neuron % C)
    at = neuron
    x_at = neuron
    for _ in tl.static_range(T):
        x = tl.load(x_ptr + x_at, inside, other=0.0).to(DTYPE)
        if scale_ptr is not None:
            x = x * scale + shift
        charged, v = _charge(v, x, v_threshold)
        tl.store(spikes_ptr + at, tl.where(charged >= v_threshold, 1.0, 0.0).to(spikes_ptr.dtype.element_ty), inside)
        at += neurons
        x_at += x_step
    if last_ptr is not None:
        tl.store(last_ptr + neuron, v, inside)


@triton.jit
def backward_kernel(
    x_ptr, v_ptr, of_spikes_ptr, of_v_ptr, scale_ptr, shift_ptr, slope_ptr, offset_ptr, of_x_ptr, of_first_ptr,
    neurons, x_step, v_threshold, C: tl.constexpr, T: tl.constexpr, BLOCK: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of neurons. BatchNorm's backward pass subtracts slope * y + offset from the gradient of a current."""
    neuron = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = neuron < neurons
    v = _given_or_0(v_ptr, neuron, inside, DTYPE)
    if scale_ptr is not None:
        scale = tl.load(scale_ptr + neuron % C)
        shift = tl.load(shift_ptr + neuron % C)
        slope = tl.load(slope_ptr + neuron % C)
        offset = tl.load(offset_ptr + neuron % C)
    xs = ()
    potentials = ()
    at = neuron
    x_at = neuron
    for _ in tl.static_range(T):
        x = tl.load(x_ptr + x_at, inside, other=0.0).to(DTYPE)
        xs = xs + (x,)
        if scale_ptr is not None:
            x = x * scale + shift
        charged, v = _charge(v, x, v_threshold)
        potentials = potentials + (charged,)
        at += neurons
        x_at += x_step
    of_v = _given_or_0(of_v_ptr, neuron, inside, DTYPE)
    for t in tl.static_range(T - 1, -1, -1):
        at -= neurons
        of_spikes = tl.load(of_spikes_ptr + at, inside, other=0.0).to(DTYPE)
        of_x, of_v = _current_gradient(of_spikes, of_v, potentials[t], v_threshold)
        if scale_ptr is not None:
            of_x = (of_x - (xs[t] * slope + offset)) * scale
        tl.store(of_x_ptr + at, of_x.to(of_x_ptr.dtype.element_ty), inside)
    if of_first_ptr is not None:
        tl.store(of_first_ptr + neuron, of_v, inside)


@triton.jit
def sums_kernel(
    y_ptr, v_ptr, of_spikes_ptr, of_v_ptr, scale_ptr, shift_ptr, mean_ptr, parts_ptr, neurons, rows, per_program, v_threshold,
    C: tl.constexpr, T: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Sum by channel, over per_program rows, the currents' gradients, and these times (y - mean)."""
    channel = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    exists = channel < C
    scale = tl.load(scale_ptr + channel, exists, other=0.0)[None, :]
    shift = tl.load(shift_ptr + channel, exists, other=0.0)[None, :]
    mean = tl.load(mean_ptr + channel, exists, other=0.0)[None, :]
    sums = tl.zeros((ROWS, COLUMNS), DTYPE)
    moments = tl.zeros((ROWS, COLUMNS), DTYPE)
    first = tl.program_id(0) * per_program
    for start in range(0, per_program, ROWS):
        row = first + start + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & exists[None, :]
        neuron = row[:, None].to(tl.int64) * C + channel[None, :]
        v = _given_or_0(v_ptr, neuron, inside, DTYPE)
        ys = ()
        potentials = ()
        at = neuron
        for _ in tl.static_range(T):
            y = tl.load(y_ptr + at, inside, other=0.0).to(DTYPE)
            ys = ys + (y,)
            charged, v = _charge(v, y * scale + shift, v_threshold)
            potentials = potentials + (charged,)
            at += neurons
        of_v = _given_or_0(of_v_ptr, neuron, inside, DTYPE)
        for t in tl.static_range(T - 1, -1, -1):
            at -= neurons
            of_spikes = tl.load(of_spikes_ptr + at, inside, other=0.0).to(DTYPE)
            of_x, of_v = _current_gradient(of_spikes, of_v, potentials[t], v_threshold)
            sums += of_x
            moments += of_x * (ys[t] - mean)
    part = tl.program_id(0) * C + channel
    tl.store(parts_ptr + part, tl.sum(sums, 0), exists)
    tl.store(parts_ptr + tl.num_programs(0) * C + part, tl.sum(moments, 0), exists)


@triton.jit
def _of_head(ptr, tokens, N, C: tl.constexpr, D: tl.constexpr):
    """Load the channels of this program's head for some tokens, [tokens, D]."""
    place = (tl.program_id(0).to(tl.int64) * N + tokens[:, None]) * C + tl.program_id(1) * D + tl.arange(0, D)[None, :]
    return tl.load(ptr + place, (tokens < N)[:, None], other=0.0)


@triton.jit
def _to_head(ptr, values, tokens, N, C: tl.constexpr, D: tl.constexpr):
    place = (tl.program_id(0).to(tl.int64) * N + tokens[:, None]) * C + tl.program_id(1) * D + tl.arange(0, D)[None, :]
    tl.store(ptr + place, values.to(ptr.dtype.element_ty), (tokens < N)[:, None])


@triton.jit
def attention_kernel(q_ptr, k_ptr, v_ptr, y_ptr, N, scale, C: tl.constexpr, D: tl.constexpr, TOKENS: tl.constexpr):
    """Compute attention. There is one program for each time step, sample and head. D: channels of a head."""
    kv = tl.zeros((D, D), tl.float32)
    for start in range(0, N, TOKENS):
        tokens = start + tl.arange(0, TOKENS)
        kv += tl.dot(tl.trans(_of_head(k_ptr, tokens, N, C, D)), _of_head(v_ptr, tokens, N, C, D))
    kv = kv.to(q_ptr.dtype.element_ty)
    for start in range(0, N, TOKENS):
        tokens = start + tl.arange(0, TOKENS)
        _to_head(y_ptr, tl.dot(_of_head(q_ptr, tokens, N, C, D), kv) * scale, tokens, N, C, D)


@triton.jit
def attention_backward_kernel(
    q_ptr, k_ptr, v_ptr, of_y_ptr, of_q_ptr, of_k_ptr, of_v_ptr, N, scale, C: tl.constexpr, D: tl.constexpr, TOKENS: tl.constexpr
):
    value = q_ptr.dtype.element_ty
    kv = tl.zeros((D, D), tl.float32)
    of_kv = tl.zeros((D, D), tl.float32)
    for start in range(0, N, TOKENS):
        tokens = start + tl.arange(0, TOKENS)
        kv += tl.dot(tl.trans(_of_head(k_ptr, tokens, N, C, D)), _of_head(v_ptr, tokens, N, C, D))
        of_kv += tl.dot(tl.trans(_of_head(q_ptr, tokens, N, C, D)), _of_head(of_y_ptr, tokens, N, C, D))
    kv = (kv * scale).to(value)
    of_kv = (of_kv * scale).to(value)
    for start in range(0, N, TOKENS):
        tokens = start + tl.arange(0, TOKENS)
        _to_head(of_q_ptr, tl.dot(_of_head(of_y_ptr, tokens, N, C, D), tl.trans(kv)), tokens, N, C, D)
        _to_head(of_k_ptr, tl.dot(_of_head(v_ptr, tokens, N, C, D), tl.trans(of_kv)), tokens, N, C, D)
        _to_head(of_v_ptr, tl.dot(_of_head(k_ptr, tokens, N, C, D), of_kv), tokens, N, C, D)
