"""FFCV's JPEG decoder: libjpeg-turbo, by way of the library that the package ffcv builds."""

from __future__ import annotations

import ctypes
import importlib.util
from functools import cache
from pathlib import Path

import numpy as np

from data_pipelines.errors import DataError, UserError


def need_ffcv() -> None:
    """Raises UserError if the extra `ffcv` is not installed or does not load."""
    _library()


def decode_jpeg(data: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 bytes of a JPEG of this size -> uint8 [H, W, 3]. Raises DataError (without a place) for anything else."""
    if size_of_jpeg(data.data) != (height, width):  # the decoder would fill a part of the image
        raise DataError("the image cannot be decoded (it is damaged, or of another size than the file says)")
    pixels = np.empty((height, width, 3), np.uint8)
    whole = (height, width, 0, 0, 1, 1, False, False)  # crop, offsets, scale 1/1, no crop and no flip
    if _library().imdecode(data.ctypes.data, data.size, height, width, pixels.ctypes.data, *whole) != 0:
        raise DataError("the image cannot be decoded (libjpeg-turbo finds it damaged)")
    return pixels


def size_of_jpeg(data: memoryview) -> tuple[int, int] | None:
    """(height, width), as its frame header says."""
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(data[at + 5 : at + 7]), int.from_bytes(data[at + 7 : at + 9])
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    return None


@cache
def _library() -> ctypes.CDLL:
    """The library alone: importing the package takes three seconds, and sets torch's number of threads to 1."""
    package = importlib.util.find_spec("ffcv")
    found = [path for folder in (package.submodule_search_locations or []) for path in Path(folder).glob("_libffcv*.so")] if package else []
    try:
        library = ctypes.CDLL(str(found[0]))
    except (IndexError, OSError) as error:
        reason = "it is not installed" if isinstance(error, IndexError) else error
        raise UserError(
            f"FFCV files need the package ffcv ({reason}); install it with: pip install 'tdformer[ffcv]' (it is built against "
            "OpenCV and libjpeg-turbo: Debian packages libopencv-dev libturbojpeg0-dev pkg-config)"
        ) from None
    sizes = [ctypes.c_uint32] * 2
    library.imdecode.argtypes = [
        ctypes.c_void_p,
        ctypes.c_uint64,
        *sizes,
        ctypes.c_void_p,
        *sizes,
        *sizes,
        *sizes,
        ctypes.c_bool,
        ctypes.c_bool,
    ]
    return library
