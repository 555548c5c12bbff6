"""Measures where attention looks: maps of some images beside the images, and the share of the attention that is on the object.

With a corruption suite, the same is done for the corrupted copies of the same images.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from data_pipelines.loading.sampler import at_equal_distances
from tdformer.analysis.attention_focus import Focus
from tdformer.analysis.attention_maps import attention_maps
from tdformer.analysis.corrupted_copies import CLEAN
from tdformer.analysis.object_masks import object_masks
from tdformer.analysis.samples import Samples
from tdformer.models.tdformer import TDFormer

IMAGES = 8
"""The number of images whose maps are shown if none are chosen."""
FOCUS_SAMPLES = 200
"""The number of images for the share of attention on the object, at equal distances among the samples."""
LARGEST_PICTURE = 128
"""Pixels of a picture's side in the results. Larger images are shown smaller."""


def measure(
    model: TDFormer, columns: Mapping[str, Samples], shown: Mapping[str, Samples], on_samples: Callable[[int], object]
) -> dict[str, Any]:
    """Return maps of the shown samples, and how much attention is on objects in FOCUS_SAMPLES. Ready for JSON. Collective.

    columns: the samples as CLEAN, and copies of them in the same order by the name of the corruption. shown: the same of the samples
    whose maps are wanted. All ranks compute all maps. on_samples: is called with numbers of samples that add up to this rank's of them.
    """
    return {
        "images": _examples(model, {name: _few(of, of.count, alone=True) for name, of in shown.items()}),
        "focus": _focus(model, {name: _few(of, FOCUS_SAMPLES) for name, of in columns.items()}, on_samples),
    }


def at_distances(columns: Mapping[str, Samples]) -> dict[str, Samples]:
    """Return IMAGES of the samples, at equal distances."""
    return {name: _few(of, IMAGES) for name, of in columns.items()}


def _few(samples: Samples, count: int, alone: bool = False) -> Samples:
    chosen = samples.chosen[at_equal_distances(samples.count, count)]
    context = replace(samples.context, rank=0, world_size=1) if alone else samples.context
    return replace(samples, chosen=chosen, context=context, batch=min(samples.batch, len(chosen)), on_batch=lambda done: None)


def _examples(model: TDFormer, columns: Mapping[str, Samples]) -> list[dict[str, Any]]:
    """Return for each image its label, and for each column the picture (PNG in base64; None for event frames), maps and answers."""
    examples: list[dict[str, Any]] = []
    for name, samples in columns.items():
        for part in samples:
            maps = attention_maps(model, part.images)
            for index, number in enumerate(part.numbers_B.tolist()):
                if number == len(examples):
                    examples.append({"label": int(part.labels_B[index]), "columns": {}})
                examples[number]["columns"][name] = {
                    "picture": None if part.images.dim() == 5 else _picture(_pixels(part.images[index], samples)),
                    **{kind: maps_NBHW[:, index].tolist() for kind, maps_NBHW in maps.by_name().items()},
                    "answers": maps.answers_NB[:, index].tolist(),
                }
    return examples


def _focus(model: TDFormer, columns: Mapping[str, Samples], on_samples: Callable[[int], object]) -> dict[str, Any] | None:
    """Return the share of attention on objects for each column. None for event frames. Masks are of the clean images."""
    samples = columns[CLEAN]
    if samples.data.manifest.kind != "images":
        return None
    masks = [object_masks(_pixels(part.images, samples)) for part in columns[CLEAN]]
    found = {}
    for name, of_column in columns.items():
        focus = Focus(samples.context)
        for part, masks_BHW in zip(of_column, masks, strict=True):
            focus.add(attention_maps(model, part.images), masks_BHW)
        on_samples(samples.count // samples.context.world_size // len(columns))
        found[name] = focus.result()
    return found


def _pixels(images: torch.Tensor, samples: Samples) -> torch.Tensor:
    """Return images [..., C, H, W] as they were before normalisation, from 0 to 1."""
    mean, std = (torch.tensor(values, device=images.device).view(-1, 1, 1) for values in (samples.config.mean, samples.config.std))
    return (images * std + mean).clamp(0, 1)


def _picture(pixels_CHW: torch.Tensor) -> str:
    image = Image.fromarray((pixels_CHW * 255).round().to(torch.uint8).movedim(0, 2).cpu().numpy().astype(np.uint8))
    image.thumbnail((LARGEST_PICTURE, LARGEST_PICTURE))
    png = io.BytesIO()
    image.save(png, format="PNG")
    return base64.b64encode(png.getvalue()).decode()
