"""Measures the highest speeds that a device reaches. The speeds of networks are compared with them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from tdformer.config import Precision


@dataclass(frozen=True)
class Ceilings:
    """The highest measured speeds: of a large matrix product at one precision, and of a large copy (bytes read plus bytes written)."""

    matmul_tflops: float
    copy_gb_per_s: float


def measure_ceilings(device: torch.device, precision: Precision) -> Ceilings:
    """Measure both speeds on this device. The best of ten repetitions counts."""
    on_gpu = device.type == "cuda"
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    n, values = (8192, 2**28) if on_gpu else (2048, 2**26)
    left, right = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    products = [partial(torch.mm, left, right)]
    if not on_gpu:  # On some CPUs the matrix product of oneDNN is twice as fast as that of BLAS.
        as_images = left.view(1, n, n, 1).permute(0, 2, 1, 3).contiguous(memory_format=torch.channels_last)
        products.append(partial(nn.functional.conv2d, as_images, right.view(n, n, 1, 1)))
    source = torch.randn(values, device=device)
    target = torch.empty_like(source)
    seconds = min(_best_time(product, device) for product in products)
    return Ceilings(2 * n**3 / seconds / 1e12, 2 * source.nbytes / _best_time(partial(target.copy_, source), device) / 1e9)


def _best_time(action: Callable[[], object], device: torch.device, times: int = 10) -> float:
    seconds = []
    for _ in range(times):
        synchronize(device)
        start = time.perf_counter()
        action()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def synchronize(device: torch.device) -> None:
    """Block until the device has finished all work that was queued. A CPU has no queue, so nothing is done there."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
