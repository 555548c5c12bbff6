"""Event frames: how many events of each polarity every pixel saw in each time step, stored as .npy."""

from __future__ import annotations

import io

import numpy as np
import torch

from data_pipelines.config import DataConfig
from data_pipelines.errors import DataError, UserError
from data_pipelines.formats.images import Pixels

MAGIC = b"\x93NUMPY"
MAX_VALUES = 2**28
"""Above it frames are refused before they are read: a header of a few bytes can claim any shape."""


def decode_frames(data: bytes) -> np.ndarray:
    """[T, 2, H, W], uint8 or uint16. Raises DataError (without a place: the caller knows it) for anything else."""
    try:
        file = io.BytesIO(data)
        version = np.lib.format.read_magic(file)
        shape, fortran, dtype = (np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0)(file)
        values = file.read()
        fits = len(shape) == 4 and shape[1] == 2 and not fortran and dtype in (np.dtype("u1"), np.dtype("<u2"))
        if not fits or min(shape) < 1 or np.prod(shape, dtype=float) > MAX_VALUES:
            raise ValueError(f"{dtype} {list(shape)} instead of uint8 or uint16 [T, 2, H, W]")
        return np.frombuffer(values, dtype).reshape(shape)
    except (ValueError, EOFError, SyntaxError) as error:
        raise DataError(f"the frames cannot be decoded ({error})") from None


class EventTransform:
    """Frames -> float32 of the same shape, mirrored with the configured probability (drawn from torch's generator).

    Raises UserError if the configuration asks for a step that is none for events: nothing is left out silently.
    """

    def __init__(self, config: DataConfig, *, training: bool) -> None:
        augment = config.augment
        asked = {"crop_scale": augment.crop_scale, "auto_augment": augment.auto_augment, "erase": augment.erase or None}
        asked["mixup"] = augment.mixup or None
        asked["cutmix"] = augment.cutmix or None
        if not_for_events := [name for name, value in asked.items() if value is not None]:
            raise UserError(
                f"data.augment.{not_for_events[0]}: event frames are augmented by flips alone; set crop_scale and auto_augment to null, "
                "and erase, mixup and cutmix to 0."
            )
        self.flip = augment.flip if training else 0.0

    def __call__(self, pixels: Pixels) -> torch.Tensor:
        frames = np.asarray(pixels)
        if self.flip and torch.rand(1) < self.flip:
            frames = frames[..., ::-1]
        return torch.from_numpy(frames.astype(np.float32))
