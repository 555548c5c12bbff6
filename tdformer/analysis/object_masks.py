"""Finds the object of an image that lies before a plain background, as clothes and digits do. Other images have none [our choice]."""

from __future__ import annotations

import torch

TOLERANCE = 0.1
"""A pixel is background if each of its channels differs from the background's by at most this much, of a range from 0 to 1."""
PLAIN = 0.5
"""The smallest share of the border that must be background."""
SMALLEST, LARGEST = 0.05, 0.95
"""An object takes a share of the image between these."""


def object_masks(pixels_BCHW: torch.Tensor) -> torch.Tensor:
    """Return True where the object of each image is, [B, H, W]; nowhere for an image without a plain background. pixels: from 0 to 1.

    The colour of the background is the median of the image's border, channel by channel.
    """
    border_BCN = torch.cat([pixels_BCHW[..., 0, :], pixels_BCHW[..., -1, :], pixels_BCHW[..., 1:-1, 0], pixels_BCHW[..., 1:-1, -1]], 2)
    background_BC1 = border_BCN.median(2, keepdim=True).values
    is_plain_B = ((border_BCN - background_BC1).abs() <= TOLERANCE).all(1).float().mean(1) >= PLAIN
    masks_BHW = ((pixels_BCHW - background_BC1[..., None]).abs() > TOLERANCE).any(1)
    area_B = masks_BHW.float().mean((1, 2))
    return masks_BHW & (is_plain_B & (area_B >= SMALLEST) & (area_B <= LARGEST))[:, None, None]
