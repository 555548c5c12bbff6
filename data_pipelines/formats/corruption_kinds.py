"""Names the corruptions of a suite, as published [Hendrycks and Dietterich 2019]."""

from __future__ import annotations

KINDS = (
    *("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise"),
    *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "gaussian_blur"),
    *("snow", "frost", "fog", "brightness", "spatter"),
    *("contrast", "elastic_transform", "pixelate", "jpeg_compression", "saturate"),
)
"""Noise, blur, weather and digital corruptions: the 15 of ImageNet-C and the 4 that were held out."""
SEVERITIES = (1, 2, 3, 4, 5)
