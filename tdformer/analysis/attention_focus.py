"""Measures which share of the attention of each pass lies on the object, and whether it moves there [paper figures 4 and 5; our measure].

The share of a map is sum(map x cover) / sum(map), where `cover` is the part of each token's patch that the object takes. Attention that is
spread evenly has the object's share of the image.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn.functional import adaptive_avg_pool2d

from tdformer.analysis.attention_maps import AttentionMaps
from tdformer.analysis.estimators.half_samples import NORMAL_95
from tdformer.distributed.context import DistContext


class Focus:
    """Adds up the shares of images, batch by batch, on all ranks."""

    def __init__(self, context: DistContext) -> None:
        self._context = context
        self._rows: dict[str, list[list[float]]] = {}

    def add(self, maps: AttentionMaps, masks_BHW: torch.Tensor) -> None:
        """Add the images that have an object, and attention in every pass. masks: True on the object, at the size of the images."""
        for kind, maps_NBHW in maps.by_name().items():
            cover_BHW = adaptive_avg_pool2d(masks_BHW.to(maps_NBHW)[:, None], (maps_NBHW.shape[-2], maps_NBHW.shape[-1]))[:, 0]
            total_NB = maps_NBHW.sum((2, 3))
            shares_NB = (maps_NBHW * cover_BHW).sum((2, 3)) / total_NB.clamp(min=1e-12)
            counts_B = (total_NB > 0).all(0) & masks_BHW.flatten(1).any(1)
            rows_BK = torch.cat([cover_BHW.mean((1, 2))[None], shares_NB]).T
            self._rows.setdefault(kind, []).extend(rows_BK[counts_B].tolist())

    def result(self) -> dict[str, Any]:
        """Return by kind of map the shares of the passes, the object's share of the image, and how much the last pass differs. Collective.

        The change from the first pass to the last has a 95 % interval over images; it is None for fewer than two images or one pass.
        """
        gathered = self._context.all_gather(self._rows)
        return {kind: _summary([row for rows in gathered for row in rows.get(kind, [])]) for kind in ("rate", "gradient")}


def _summary(rows: list[list[float]]) -> dict[str, Any]:
    count = len(rows)
    result: dict[str, Any] = {"images": count, "area": None, "passes": None, "change": None}
    if not count:
        return result
    area, *passes = (sum(column) / count for column in zip(*rows, strict=True))
    result |= {"area": area, "passes": passes}
    if count > 1 and len(passes) > 1:
        changes = [row[-1] - row[1] for row in rows]
        mean = sum(changes) / count
        error = NORMAL_95 * math.sqrt(sum((change - mean) ** 2 for change in changes) / (count - 1) / count)
        result["change"] = {"value": mean, "low": mean - error, "high": mean + error}
    return result
