"""Runs one micro-batch on torch's `meta` device, where tensors have a shape and a dtype and take no memory.

FakeTensorMode cannot do this: torch's autograd needs a driver for a pretended GPU, and recompute reads values, which fake tensors lack.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from tdformer.config import Precision, RecomputePolicy, RunConfig
from tdformer.training.model_with_loss import ModelWithLoss


@contextmanager
def meta_device(precision: Precision = "fp32") -> Iterator[None]:
    """Puts new tensors on the meta device, and runs products of matrices in 16 bits at the precisions bf16 and fp16."""
    with torch.device("meta"), nullcontext() if precision == "fp32" else _ProductsIn16Bits():
        yield


def make_model_with_loss(config: RunConfig, recompute: RecomputePolicy | None = None) -> ModelWithLoss:
    """Makes the run's network with its loss, at the run's recompute policy or another one. Gradients are allocated."""
    model_with_loss = ModelWithLoss(config.model, config.training.label_smoothing, recompute or config.training.recompute)
    for parameter in model_with_loss.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return model_with_loss


def forward(model_with_loss: ModelWithLoss, config: RunConfig) -> torch.Tensor:
    """Return the loss of one micro-batch, a scalar. Images are float32 [B, 3, H, W]; frames of events are [T, B, 2, H, W]."""
    size, batch, channels = config.data.image_size, config.training.micro_batch, config.model.backbone.in_channels
    frames = (config.model.time_steps,) if channels == 2 else ()
    return model_with_loss(torch.zeros(*frames, batch, channels, size, size), torch.zeros(batch, dtype=torch.int64))


def backward(loss: torch.Tensor) -> None:
    """Runs the backward pass, and keeps the modes of `meta_device` on while recompute runs layers again.

    Given a tensor, torch would turn those modes off for the whole backward pass. Given an edge of the graph, it leaves them on.
    """
    torch.autograd.backward(torch.autograd.graph.get_gradient_edge(loss), torch.ones_like(loss))


class _ProductsIn16Bits(TorchFunctionMode):
    """Casts as autocast does on a GPU, as far as bytes are concerned. torch's own autocast does not know the meta device.

    bfloat16 stands for float16 too, which is as wide.
    """

    PRODUCTS = (nn.functional.conv1d, nn.functional.conv2d, nn.functional.linear, torch.Tensor.__matmul__)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self.PRODUCTS:
            args, kwargs = tree_map_only(torch.Tensor, torch.Tensor.bfloat16, (args, kwargs))
        return func(*args, **kwargs)
