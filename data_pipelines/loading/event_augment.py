"""Augments event sequences, with one draw for all frames of a sample.

The operations are those of the public QKFormer code (known as NDA): nothing, shear, a shift along x or y, rotation, or cut-out.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torchvision.transforms import InterpolationMode, RandomErasing
from torchvision.transforms.functional import affine

MAGNITUDES = 31
"""The number of magnitudes of each operation, at equal distances from 0 to the largest."""
LARGEST_SHEAR, LARGEST_SHIFT, LARGEST_ROTATION = 0.3, 5.0, 30.0
"""The largest factor of a shear, shift in pixels, and rotation in degrees, to both sides."""
CUT_OUT = RandomErasing(p=1.0, scale=(0.001, 0.11), ratio=(1.0, 1.0))
"""Cuts out a square, of which `scale` is the range of the area as a share of the frame."""


def augment_events(frames_TCHW: torch.Tensor) -> torch.Tensor:
    """Change all frames of a sample, float32 [T, 2, H, W], by one of the six operations, which are equally likely.

    Pixels come from the nearest one, and there are no events outside the frame. The draws are from torch's global generator.
    """
    operation = tuple(OPERATIONS.values())[int(torch.randint(len(OPERATIONS), ()))]
    share = int(torch.randint(MAGNITUDES, ())) / (MAGNITUDES - 1)
    return operation(frames_TCHW, share if torch.rand(()) < 0.5 else -share)


def _moved(x_TCHW: torch.Tensor, *, angle: float = 0.0, right: float = 0.0, down: float = 0.0, shear: float = 0.0) -> torch.Tensor:
    degrees = math.degrees(math.atan(shear))
    return affine(x_TCHW, angle, [round(right), round(down)], 1.0, [degrees, 0.0], interpolation=InterpolationMode.NEAREST)


OPERATIONS: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    "nothing": lambda x_TCHW, share: x_TCHW,
    "shear": lambda x_TCHW, share: _moved(x_TCHW, shear=share * LARGEST_SHEAR),
    "shift along x": lambda x_TCHW, share: _moved(x_TCHW, right=share * LARGEST_SHIFT),
    "shift along y": lambda x_TCHW, share: _moved(x_TCHW, down=share * LARGEST_SHIFT),
    "rotation": lambda x_TCHW, share: _moved(x_TCHW, angle=share * LARGEST_ROTATION),
    "cut-out": lambda x_TCHW, share: CUT_OUT(x_TCHW),
}
"""The operations by name. Each takes frames, and a share of its largest magnitude from -1 to 1."""
