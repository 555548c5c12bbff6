"""The Triton kernels without a GPU: interpreted, they compute the formulas; and Triton makes code of them for GPUs that are not here."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tdformer.models.kernels import on_cuda
from tdformer.models.kernels.triton_kernels import (
    attention_backward_kernel,
    attention_kernel,
    backward_kernel,
    fire_kernel,
    sums_kernel,
)
from tests.conftest import REPOSITORY

SCALE = ("scale_ptr", "shift_ptr", "slope_ptr", "offset_ptr")
FIRST = ("v_ptr", "of_first_ptr")
VARIANTS: tuple[tuple[Any, tuple[str, ...]], ...] = (
    (fire_kernel, ()),
    (fire_kernel, (*SCALE, "v_ptr", "last_ptr")),
    (backward_kernel, FIRST),
    (backward_kernel, (*SCALE, "of_v_ptr")),
    (sums_kernel, FIRST),
    (sums_kernel, ("of_v_ptr",)),
)
"""Kernels, and for each the pointers that are None."""
VALUES = ("x_ptr", "y_ptr", "spikes_ptr", "of_spikes_ptr", "of_x_ptr")
"""Pointers to the dtype of the network's values. The other pointers are to float32."""


@pytest.mark.slow
def test_interpreted_kernels_compute_the_formulas() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.interpreted_kernels"],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=REPOSITORY,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr


def source(kernel: Any, absent: tuple[str, ...], steps: int, value: str) -> ASTSource:
    """Return the kernel's source as on_cuda.py calls it, with 768 channels."""
    sizes = on_cuda._sizes(torch.empty(steps, 1), torch.empty(768))
    sizes |= {"ROWS": sizes["BLOCK"] // on_cuda.SUM_COLUMNS, "COLUMNS": on_cuda.SUM_COLUMNS}
    constants = {name: sizes.get(name) for name in kernel.arg_names if name in sizes or name in absent}
    signature, aligned = {}, {}
    for position, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            signature[name] = "*" + (value if name in VALUES else "fp32")
            aligned[(position,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32" if name == "v_threshold" else "i32"
    return ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "steps", "value"), [(80, 2, "bf16"), (80, 16, "fp32"), (90, 2, "fp32"), (90, 16, "bf16")])
def test_kernels_compile_for_gpus(architecture: int, steps: int, value: str) -> None:
    for kernel, absent in VARIANTS:
        compiled = triton.compile(source(kernel, absent, steps, value), GPUTarget("cuda", architecture, 32), on_cuda.OPTIONS)
        assert compiled.asm["cubin"]


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "value"), [(80, "fp16"), (90, "bf16")])
def test_attention_compiles_for_gpus(architecture: int, value: str) -> None:
    for kernel in (attention_kernel, attention_backward_kernel):
        kinds = {"N": "i32", "scale": "fp32"}
        signature = {name: "*" + value if name.endswith("_ptr") else kinds.get(name, "constexpr") for name in kernel.arg_names}
        constants = {"C": 768, "D": 64, "TOKENS": on_cuda.TOKENS}
        made = ASTSource(fn=kernel, signature=signature, constexprs=constants)
        assert triton.compile(made, GPUTarget("cuda", architecture, 32), on_cuda.OPTIONS).asm["cubin"]
