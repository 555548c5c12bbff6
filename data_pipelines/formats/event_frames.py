"""Decodes event frames: arrays, stored as .npy files, that count the events of each pixel, polarity and time step."""

from __future__ import annotations

import io

import numpy as np

from data_pipelines.errors import DataError

NPY_MAGIC = b"\x93NUMPY"
"""First bytes of an .npy file."""
MAX_VALUES = 2**28
"""Larger arrays are refused before their values are read, since a header of a few bytes can claim any shape."""


def decode_frames(data: bytes) -> np.ndarray:
    """Decode an .npy file to frames [T, 2, H, W], uint8 or uint16.

    Raises DataError for anything else. Its message names no file, since only the caller knows it.
    """
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
