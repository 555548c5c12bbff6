"""Draws where the attention of a network looks, in each pass over an image [paper figures 4 and 5].

The paper does not define its maps. Two definitions are used [our choice]. A pass is a segment: the first has no top-down signal.

  rate      the spikes that leave the last block's attention, as a mean over channels and the time steps of the pass
  gradient  Grad-CAM (Selvaraju et al. 2017) on the features H of the pass: the sum over channels of H times the mean gradient of the
            pass's own logit, where it is positive. The logit is that of the class which the network names in the end.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from tdformer.analysis.stage_outputs import StageOutputs
from tdformer.models.tdformer import TDFormer


@dataclass(frozen=True)
class AttentionMaps:
    """The maps of some images for each of N passes, numbers from 0 to 1. Height and width are those of the last stage."""

    rate_NBHW: torch.Tensor
    gradient_NBHW: torch.Tensor
    answers_NB: torch.Tensor
    """The class that the network names after each pass."""

    def by_name(self) -> dict[str, torch.Tensor]:
        return {"rate": self.rate_NBHW, "gradient": self.gradient_NBHW}


def attention_maps(model: TDFormer, images_BCHW: torch.Tensor) -> AttentionMaps:
    """Return the maps of images, which are as the network takes them, normalised.

    All maps of one kind and image share a scale: 1 is the largest value of any pass. A network that is silent there has zeros.
    """
    *_, block = model.backbone.transform()
    attended: list[torch.Tensor] = []
    outputs = StageOutputs(model)
    with ExitStack() as stack, torch.enable_grad():
        stack.enter_context(outputs.recorded())
        stack.callback(block.attn.register_forward_hook(_keeping(attended)).remove)
        segments_NBK = model.forward_segments(images_BCHW)
        *_, features = outputs.take_segments().values()
        answers_NB = segments_NBK.argmax(2)
        logits_NB = segments_NBK.gather(2, answers_NB[-1:, :, None].expand(len(segments_NBK), -1, 1))
        gradients = [
            torch.autograd.grad(logits.sum(), h_TBCHW, retain_graph=True)[0] for logits, h_TBCHW in zip(logits_NB, features, strict=True)
        ]
    rate_NBHW = torch.stack([spikes_TBCHW.detach().float().mean((0, 2)) for spikes_TBCHW in attended])
    cam_NBHW = torch.stack([_grad_cam(h, gradient) for h, gradient in zip(features, gradients, strict=True)])
    return AttentionMaps(_scaled(rate_NBHW), _scaled(cam_NBHW), answers_NB)


def _keeping(kept: list[torch.Tensor]) -> Any:
    def keep(module: object, inputs: object, spikes_TBCHW: torch.Tensor) -> None:
        kept.append(spikes_TBCHW)

    return keep


def _grad_cam(h_TBCHW: torch.Tensor, gradient_TBCHW: torch.Tensor) -> torch.Tensor:
    """Return the map of one pass, [B, H, W]."""
    h_TBCHW = h_TBCHW.detach()
    weights_TBC11 = gradient_TBCHW.mean((3, 4), keepdim=True)
    return (weights_TBC11 * h_TBCHW).sum(2).clamp(min=0).mean(0)


def _scaled(maps_NBHW: torch.Tensor) -> torch.Tensor:
    largest = maps_NBHW.abs().amax((0, 2, 3), keepdim=True)
    return maps_NBHW / torch.where(largest > 0, largest, torch.ones_like(largest))
