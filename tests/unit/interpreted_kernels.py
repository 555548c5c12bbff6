"""The functions of on_cuda.py beside those of formulas.py on a CPU: `TRITON_INTERPRET=1 python -m tests.unit.interpreted_kernels`.

A process of its own, as Triton asks for its interpreter once, at import. It fails with the first result that differs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch

from tdformer.models.kernels import formulas, on_cuda

SHAPES = (
    (1, 7, 3),
    (2, 40, 48),
    (4, 16, 64),  # a block, filled
    (5, 60, 130),
    (16, 20, 70),
)
"""Time steps, rows, channels."""
SUM_PROGRAMS = 3
"""Few, so that few rows make each program take several turns."""
CLOSE = {
    torch.float64: {"rtol": 1e-10, "atol": 1e-12},
    torch.float32: {"rtol": 1e-5, "atol": 2e-5},
    torch.bfloat16: {"rtol": 2**-7, "atol": 2e-5},  # the interpreter cuts off what CUDA rounds
}
THRESHOLD = 0.5


def compare(name: str, shape: tuple[int, ...], *inputs: Any) -> None:
    """Spikes are equal, all else is close; types and memory layouts are those that the formula promises to torch."""
    given = [tensor.clone() if isinstance(tensor, torch.Tensor) else tensor for tensor in inputs]
    results, expected = (getattr(module, name)(*inputs) for module in (on_cuda, formulas))
    for number, (one, other) in enumerate(zip(results, expected, strict=True)):
        where = f"result {number} of {name}, {shape}, {inputs[0].dtype}, strides {inputs[0].stride()}"
        is_spikes = number == 0 and "backward" not in name
        tolerance = {"rtol": 0, "atol": 0} if is_spikes else CLOSE[one.dtype]
        torch.testing.assert_close(one, other, **tolerance, check_stride=True, msg=lambda text, where=where: f"{where}: {text}")
        assert not is_spikes or 0 < one.double().mean() < 1, where
    for tensor, before in zip(inputs, given, strict=True):
        assert not isinstance(tensor, torch.Tensor) or torch.equal(tensor, before), f"{name} wrote to an input"


def currents(steps: int, neurons: int, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """Each step's own ones, the same ones at every step, and part of a longer row."""
    x_TM = (torch.randn(steps, 2 * neurons) * 2).to(dtype)
    yield x_TM[:, :neurons].contiguous()
    yield x_TM[0, :neurons].expand(steps, neurons)
    yield x_TM[:, :neurons]


def check(shape: tuple[int, int, int], dtype: torch.dtype, carries: bool) -> None:
    """carries: there are first potentials, and gradients of the last ones."""
    steps, rows, channels = shape
    own = torch.promote_types(dtype, torch.float32)
    v_MC = torch.rand(rows, channels, dtype=own) if carries else None
    of_v_MC = torch.randn(rows, channels, dtype=own) if carries else None
    of_spikes_TMC = torch.randn(shape, dtype=own).to(dtype)
    v_M, of_v_M = (None if tensor is None else tensor.flatten() for tensor in (v_MC, of_v_MC))
    for x_TM in currents(steps, rows * channels, dtype):
        for keeps_last in (False, True):
            compare("neurons", shape, x_TM, v_M, THRESHOLD, keeps_last)
        compare("neurons_backward", shape, x_TM, v_M, of_spikes_TMC.flatten(1), of_v_M, THRESHOLD)
    y_TMC = (torch.randn(shape, dtype=own) * 2 + 1).to(dtype)
    weight_C, bias_C = torch.empty(channels, dtype=own).uniform_(-2, 2), torch.randn(channels, dtype=own)
    variance_C, mean_C = torch.var_mean(y_TMC.to(own), (0, 1), correction=0)
    invstd_C = (variance_C + 1e-5).rsqrt()
    scale_C = weight_C * invstd_C
    compare("norm_neurons", shape, y_TMC, v_MC, scale_C, bias_C - mean_C * scale_C, THRESHOLD, carries)
    compare("norm_neurons_backward", shape, y_TMC, v_MC, weight_C, bias_C, mean_C, invstd_C, of_spikes_TMC, of_v_MC, THRESHOLD)


def check_attention(shape: tuple[int, int, int], heads: int, dtype: torch.dtype) -> None:
    """Products of spikes are whole numbers, so that the results are those of the formula, but for the gradients' rounding."""
    q_RNC, k_RNC, v_RNC = ((torch.rand(shape) < 0.2).to(dtype) for _ in range(3))
    y_RNC = on_cuda.attention(q_RNC, k_RNC, v_RNC, heads, 0.125)
    assert torch.equal(y_RNC, formulas.attention(q_RNC, k_RNC, v_RNC, heads, 0.125))
    inputs = q_RNC, k_RNC, v_RNC, torch.randn(shape).to(dtype), heads, 0.125
    tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    for one, other in zip(on_cuda.attention_backward(*inputs), formulas.attention_backward(*inputs), strict=True):
        largest = other.abs().max()
        torch.testing.assert_close(one / largest, other / largest, rtol=0, atol=tolerance, check_stride=True)


def main() -> None:
    on_cuda.SUM_PROGRAMS = SUM_PROGRAMS
    torch.manual_seed(0)
    for shape, dtype, carries in itertools.product(SHAPES, CLOSE, (False, True)):
        check(shape, dtype, carries)
    for dtype in (torch.float32, torch.float16):  # in bfloat16 the interpreter has no products
        check_attention((2, 196, 192), 3, dtype)
        check_attention((3, 33, 16), 1, dtype)


if __name__ == "__main__":
    main()
