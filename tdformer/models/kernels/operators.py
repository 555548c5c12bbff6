"""The kernels as torch's operators: C++ by torch.compile on a CPU, Triton on CUDA, shapes alone on the meta device.

As operators, profilers and memory plans see what goes in and what comes out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch.fx.experimental import _config as sizes

from tdformer.models.kernels import formulas

MOST_STEPS = 16
"""A kernel has its time steps written out; with more of them neurons take the plain path."""
VERSIONS = 64
"""A formula is compiled for each number of time steps and type; torch gives up after 8 of them."""
INLINED: dict[str, Any] = {"realize_opcount_threshold": 100_000, "realize_reads_threshold": 1000}
"""What torch's compiler would otherwise write to memory and read again, once a formula gets long."""


def _operator(formula: Callable[..., Any]) -> Any:
    def on_cpu(*inputs: Any) -> Any:
        # Compiled code is kept for each tensor that is a view of another, or wants a gradient: these do neither.
        inputs = tuple(each.data if isinstance(each, torch.Tensor) else each for each in inputs)
        # Or sizes that happen to be equal would have to stay so.
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
    torch._inductor.config.compile_threads = 1  # no helper processes, which signals to a job's processes would reach
    return torch.compile(formula, fullgraph=True, dynamic=True, options=INLINED)  # one kernel for all sizes, but for those of 1


neurons = _operator(formulas.neurons)
norm_neurons = _operator(formulas.norm_neurons)
neurons_backward = _operator(formulas.neurons_backward)
norm_neurons_backward = _operator(formulas.norm_neurons_backward)
attention = _operator(formulas.attention)
attention_backward = _operator(formulas.attention_backward)


def reason_against(device: torch.device) -> str | None:
    """Why kernels cannot be compiled for this device on this machine (no compiler, say); None if they can."""
    y_TMC, one_C = torch.ones(2, 32, 16, device=device), torch.ones(16, device=device)
    try:
        spikes_TMC, _ = norm_neurons(y_TMC, None, one_C, one_C, 1.0, True)
        norm_neurons_backward(y_TMC, None, one_C, one_C, one_C, one_C, spikes_TMC, None, 1.0)
        if device.type == "cuda":
            q_RNC = spikes_TMC.half()
            attention_backward(q_RNC, q_RNC, q_RNC, attention(q_RNC, q_RNC, q_RNC, 1, 1.0), 1, 1.0)
    except Exception as error:  # whatever a compiler, or its absence, may raise
        return f"{type(error).__name__}: {error}".strip().partition("\n")[0]
    return None
