"""Registers the kernels as torch operators: C++ by torch.compile on a CPU, Triton on CUDA, only shapes on the meta device.

Profilers and memory estimates see the inputs and outputs of operators.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch.fx.experimental import _config as sizes

from tdformer.models.kernels import formulas

MOST_STEPS = 16
"""Largest number of time steps of a kernel, whose loop over them is unrolled. Beyond it neurons take the plain path."""
VERSIONS = 64
"""Versions of a formula that may be compiled, one for each number of time steps and dtype. torch's default stops at 8."""
INLINED: dict[str, Any] = {"realize_opcount_threshold": 100_000, "realize_reads_threshold": 1000}
"""Settings that keep torch's compiler from writing intermediate results of long formulas to memory."""


def _operator(formula: Callable[..., Any], *, is_compiled: bool = True) -> Any:
    """is_compiled: false where torch's own operations are faster on a CPU than what its compiler makes of them."""

    def on_cpu(*inputs: Any) -> Any:
        if not is_compiled:
            return formula(*inputs)
        # Compiled code is specialised for views and for tensors that require gradients. These tensors are neither.
        inputs = tuple(each.data if isinstance(each, torch.Tensor) else each for each in inputs)
        # Otherwise sizes that happen to be equal would have to stay equal.
        with sizes.patch(use_duck_shape=False):  # type: ignore[attr-defined]
            return _compiled(formula)(*inputs)

    def on_cuda(*inputs: Any) -> Any:
        from tdformer.models.kernels import on_cuda

        return getattr(on_cuda, formula.__name__)(*inputs)

    schema = torch.library.infer_schema(formula, mutates_args=())
    operator = torch.library.custom_op(f"tdformer::{formula.__name__}", on_cpu, mutates_args=(), device_types="cpu", schema=schema)
    operator.register_kernel("cuda", on_cuda)
    operator.register_fake(formula)
    return operator


@cache
def _compiled(formula: Callable[..., Any]) -> Callable[..., Any]:
    import torch._dynamo
    import torch._inductor.config

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VERSIONS)
    torch._inductor.config.compile_threads = 1  # no helper processes, because signals to a job's processes would reach them
    return torch.compile(formula, fullgraph=True, dynamic=True, options=INLINED)  # one kernel for all sizes except 1


neurons = _operator(formulas.neurons)
norm_neurons = _operator(formulas.norm_neurons)
neurons_backward = _operator(formulas.neurons_backward)
norm_neurons_backward = _operator(formulas.norm_neurons_backward)
attention = _operator(formulas.attention, is_compiled=False)  # products of matrices: 1.3 to 1.9 times as fast
attention_backward = _operator(formulas.attention_backward, is_compiled=False)


def reason_against(device: torch.device) -> str | None:
    """Return why kernels cannot be compiled for this device on this machine (no compiler, say), or None if they can."""
    y_TMC, one_C = torch.ones(2, 32, 16, device=device), torch.ones(16, device=device)
    try:
        spikes_TMC, _ = norm_neurons(y_TMC, None, one_C, one_C, 1.0, True)
        norm_neurons_backward(y_TMC, None, one_C, one_C, one_C, one_C, spikes_TMC, None, 1.0)
        if device.type == "cuda":
            q_RNC = spikes_TMC.half()
            attention_backward(q_RNC, q_RNC, q_RNC, attention(q_RNC, q_RNC, q_RNC, 1, 1.0), 1, 1.0)
    except Exception as error:  # a compiler, or its absence, may raise anything
        return f"{type(error).__name__}: {error}".strip().partition("\n")[0]
    return None
