"""Chooses between fused and plain kernels for a run."""

from __future__ import annotations

from tdformer.config import Kernels
from tdformer.distributed.context import DistContext
from tdformer.models.kernels.operators import reason_against
from tdformer.models.tdformer import TDFormer


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
