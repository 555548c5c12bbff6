"""Which kernels a run takes: fused, or plain."""

from __future__ import annotations

from tdformer.config import Kernels
from tdformer.distributed.context import DistContext
from tdformer.models.kernels.operators import reason_against
from tdformer.models.tdformer import TDFormer


def are_wanted(kernels: Kernels, device_type: str) -> bool:
    """Whether fused ones are."""
    return kernels == "fused" or (kernels == "auto" and device_type == "cuda")


def choose_kernels(model: TDFormer, kernels: Kernels, context: DistContext) -> list[str]:
    """The same ones on all ranks; fused ones if they are wanted and can be compiled everywhere. Returns what a user should know."""
    if not are_wanted(kernels, context.device.type):
        return []
    if reasons := [reason for reason in context.all_gather(reason_against(context.device)) if reason]:
        return [f"warning: fused kernels cannot be compiled here, going on with the plain ones, which are slower ({reasons[0]})"]
    model.use_fused_kernels()
    return []
