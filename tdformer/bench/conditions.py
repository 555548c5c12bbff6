"""Describes where a measurement was made: the device, the versions of packages, and the load of the machine."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from tdformer.rundir.code_version import code_version

PACKAGES = ("torch", "triton", "spikingjelly", "deepspeed", "timm")


def conditions(device: torch.device) -> dict[str, object]:
    """Return what is worth knowing about this machine and environment beside a measurement, as values for JSON."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "commit": code_version(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """Return the model name of the CPU, as Linux reports it."""
    with open("/proc/cpuinfo") as file:
        return next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), platform.machine())
