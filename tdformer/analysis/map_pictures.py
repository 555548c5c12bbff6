"""Draws where the attention of a network looks in an image: the image, and for each pass the image under its map."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw

from tdformer.analysis.attention_maps import attention_maps
from tdformer.inference.predictor import Predictor

SIDE, EDGE, HEAD = 192, 8, 18
"""Pixels of an image's side in a picture, of the space between images, and of the line above them."""
WARM = np.array([214, 39, 40], np.float32)
"""The colour of a map where it is 1."""


def draw_maps(predictor: Predictor, tensors: Sequence[torch.Tensor]) -> Iterator[Image.Image]:
    """Yield a picture for each image that `Predictor.tensor` has made: one row for each kind of map, one column for each pass."""
    maps = attention_maps(predictor.model, predictor.images.batch(tensors, predictor.device))
    for index, tensor in enumerate(tensors):
        shown = _shown(tensor)
        answers = [predictor.classes[answer] for answer in maps.answers_NB[:, index].tolist()]
        rows = {kind: maps_NBHW[:, index].cpu().numpy() for kind, maps_NBHW in maps.by_name().items()}
        yield _picture(shown, rows, answers)


def _shown(tensor: torch.Tensor) -> Image.Image:
    """Return an image, or the events of all frames of a sample as grey."""
    if tensor.dim() == 3:
        return Image.fromarray(tensor.numpy())
    counts_HW = tensor.sum((0, 1)).numpy()
    return Image.fromarray((255 * counts_HW / max(counts_HW.max(), 1)).astype(np.uint8)).convert("RGB")


def _picture(image: Image.Image, rows: dict[str, np.ndarray], answers: Sequence[str]) -> Image.Image:
    image = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    width, height = (1 + len(answers)) * (SIDE + EDGE) + EDGE, len(rows) * (SIDE + HEAD + EDGE) + EDGE
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    for row, (kind, maps_NHW) in enumerate(rows.items()):
        top = EDGE + row * (SIDE + HEAD + EDGE)
        draw.text((EDGE, top), kind, fill="black")
        picture.paste(image, (EDGE, top + HEAD))
        for number, (map_HW, answer) in enumerate(zip(maps_NHW, answers, strict=True), start=1):
            left = EDGE + number * (SIDE + EDGE)
            draw.text((left, top), f"pass {number}: {answer}"[:30], fill="black")
            picture.paste(_under(image, map_HW), (left, top + HEAD))
    return picture


def _under(image: Image.Image, map_HW: np.ndarray) -> Image.Image:
    """Return an image that is the warmer the larger the map is."""
    strength = Image.fromarray((255 * np.clip(map_HW, 0, 1)).astype(np.uint8)).resize(image.size, Image.Resampling.BILINEAR)
    share_HW1 = 0.7 * np.asarray(strength, np.float32)[..., None] / 255
    return Image.fromarray(((1 - share_HW1) * np.asarray(image, np.float32) + share_HW1 * WARM).astype(np.uint8))
