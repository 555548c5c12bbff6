"""Computes spiking self-attention in one kernel each way. It works in channels_last, which saves copies to the heads' layout and back."""

from __future__ import annotations

from typing import Any

import torch

from tdformer.models.kernels import operators


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_RNC: torch.Tensor, k_RNC: torch.Tensor, v_RNC: torch.Tensor, heads: int, scale: float) -> torch.Tensor:
        ctx.constants = heads, scale
        ctx.save_for_backward(q_RNC, k_RNC, v_RNC)
        return operators.attention(q_RNC, k_RNC, v_RNC, heads, scale)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return *operators.attention_backward(*ctx.saved_tensors, gradients[0].contiguous(), *ctx.constants), None, None


def attention(q_TBCN: torch.Tensor, k_TBCN: torch.Tensor, v_TBCN: torch.Tensor, heads: int, scale: float) -> torch.Tensor:
    """Return q (kᵀ v) scale within each head. All are [T, B, C, N]."""
    rows = (x_TBCN.transpose(2, 3).flatten(0, 1).contiguous() for x_TBCN in (q_TBCN, k_TBCN, v_TBCN))
    return _Attention.apply(*rows, heads, scale).unflatten(0, q_TBCN.shape[:2]).transpose(2, 3)


def takes(q_TBCN: torch.Tensor, heads: int) -> bool:
    """Tell whether there is a kernel for these: on CUDA, at half precision, for heads of 16, 32, 64 or 128 channels."""
    return q_TBCN.is_cuda and q_TBCN.dtype in (torch.bfloat16, torch.float16) and q_TBCN.shape[2] // heads in (16, 32, 64, 128)
