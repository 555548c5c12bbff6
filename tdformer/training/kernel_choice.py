"""Chooses between fused and plain kernels for a run, and kernels that give the same bits each time."""

from __future__ import annotations

import os

import torch

from tdformer.config import Kernels
from tdformer.distributed.context import DistContext
from tdformer.models.kernels.operators import reason_against
from tdformer.models.tdformer import TDFormer

WORKSPACES = ":4096:8"
"""The setting of CUBLAS_WORKSPACE_CONFIG with which cuBLAS gives the same bits each time. It takes 24 MB per handle."""


def use_deterministic_kernels() -> None:
    """Let torch run only kernels that give the same bits each time. Operations without one then raise RuntimeError."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", WORKSPACES)
    torch.use_deterministic_algorithms(True)
    # To fill new tensors finds faults, and costs a pass over each.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False


def are_wanted(kernels: Kernels, device_type: str) -> bool:
    """Tell whether a configuration asks for fused kernels on this type of device."""
    return kernels == "fused" or (kernels == "auto" and device_type == "cuda")


def choose_kernels(model: TDFormer, kernels: Kernels, context: DistContext) -> list[str]:
    """Choose the same kernels on all ranks: fused ones if they are wanted and every rank can compile them. Return notes for the user."""
    if not are_wanted(kernels, context.device.type):
        return []
    if reasons := [reason for reason in context.all_gather(reason_against(context.device)) if reason]:
        return [f"warning: fused kernels cannot be compiled here, going on with the plain ones, which are slower ({reasons[0]})"]
    model.use_fused_kernels()
    return []
