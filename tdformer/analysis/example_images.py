"""Makes attention maps of some images of a set, and keeps the images beside them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from tdformer.analysis.attention_maps import attention_maps
from tdformer.analysis.samples import Samples
from tdformer.models.tdformer import TDFormer

IMAGES = 8
"""The number of images, at equal distances among the samples."""


def measure(model: TDFormer, samples: Samples) -> dict[str, Any]:
    """Return the maps of IMAGES samples, the same on every rank: each computes all of them. Ready for JSON.

    pixels: the image as the network saw it, uint8 [H, W, 3]; None for event frames.
    """
    device = samples.context.device
    few = Samples(
        samples.config, samples.data, min(IMAGES, samples.count), IMAGES, replace(samples.context, rank=0, world_size=1), samples.patience
    )
    examples = []
    for part in few:
        maps = attention_maps(model, part.images)
        for index, of_image in enumerate(maps):
            pixels = None if part.images.dim() == 5 else _pixels(part.images[index], samples, device)
            examples.append({"pixels": pixels, "label": int(part.labels_B[index]), **vars(of_image)})
    samples.on_batch(samples.count)
    return {"images": examples}


def _pixels(image_CHW: torch.Tensor, samples: Samples, device: torch.device) -> list[list[list[int]]]:
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (samples.config.mean, samples.config.std))
    return ((image_CHW * std + mean) * 255).round().clamp(0, 255).to(torch.uint8).movedim(0, 2).tolist()
