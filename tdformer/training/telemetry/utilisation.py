"""Measures how much of a device's FLOP/s and memory a run uses."""

from __future__ import annotations

import re
import resource

import torch

from tdformer.config import RunConfig
from tdformer.training.telemetry.flops import flops_per_image

MFU, HFU = "train/mfu", "train/hfu"

PEAK_TFLOPS: tuple[tuple[str, dict[str, float]], ...] = (
    ("B200", {"bf16": 2250, "fp32": 75}),
    ("H200", {"bf16": 989, "fp32": 67}),
    ("H100 PCIe", {"bf16": 756, "fp32": 51}),
    ("H100 NVL", {"bf16": 835, "fp32": 60}),
    ("H100", {"bf16": 989, "fp32": 67}),
    ("A100", {"bf16": 312, "fp32": 19.5}),
    ("L40S", {"bf16": 362, "fp32": 91.6}),
    ("L4", {"bf16": 121, "fp32": 30.3}),
    ("RTX 4090", {"bf16": 165, "fp32": 82.6}),
    ("RTX 3090", {"bf16": 71, "fp32": 35.6}),
    ("A10", {"bf16": 125, "fp32": 31.2}),
)
"""Dense peaks from NVIDIA's data sheets, by whole words of the device's name. The first that fits counts. bf16 stands for fp16 too."""


def peak_tflops(config: RunConfig, device: torch.device) -> float | None:
    """Return the peak TFLOP/s of one device at the run's precision, or None if it is not known."""
    if config.profiling.peak_tflops is not None or device.type != "cuda":
        return config.profiling.peak_tflops
    name = torch.cuda.get_device_name(device)
    precision = "fp32" if config.training.precision == "fp32" else "bf16"
    return next((peaks[precision] for words, peaks in PEAK_TFLOPS if re.search(rf"\b{words}\b", name)), None)


class Utilisation:
    """Computes model and hardware FLOPs utilisation from images per second.

    MFU counts the FLOPs of forward and backward pass, relative to the device's peak. HFU also counts those that are computed again.
    """

    def __init__(self, config: RunConfig, device: torch.device, world_size: int) -> None:
        self._peak_flops, self._flops_per_image = 0.0, (0.0, 0.0)
        if peak := peak_tflops(config, device):
            policy, of_none = config.training.recompute, flops_per_image(config, "none")
            of_policy = of_none if policy == "none" else flops_per_image(config)
            self._peak_flops, self._flops_per_image = peak * 1e12 * world_size, (of_none, of_policy)

    def at(self, images_per_s: float) -> dict[str, float]:
        """Return MFU and HFU as fractions, by name. Empty where the peak is not known."""
        if not self._peak_flops:
            return {}
        mfu, hfu = (flops * images_per_s / self._peak_flops for flops in self._flops_per_image)
        return {MFU: mfu, HFU: hfu}


def peak_memory_mb(device: torch.device) -> float:
    """Return the peak memory since the process began, in megabytes (10^6 bytes).

    On a GPU that is the memory of tensors, elsewhere the process's resident memory.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
