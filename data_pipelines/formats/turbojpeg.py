"""Decodes JPEGs with FFCV's decoder: libjpeg-turbo, called through the library that the package ffcv builds."""

from __future__ import annotations

import ctypes
import importlib.util
from functools import cache
from pathlib import Path

import numpy as np

from data_pipelines.errors import DataError, UserError


def require_ffcv() -> None:
    """Raises UserError if the extra `ffcv` is not installed or does not load."""
    _library()


def decode_jpeg(data: np.ndarray, height: int, width: int) -> np.ndarray:
    """Decode the uint8 bytes of a JPEG of this size to uint8 [H, W, 3].

    Raises DataError for anything else. Its message names no file, since only the caller knows it.
    """
    if size_of_jpeg(data.data) != (height, width):  # the decoder itself would fill a part of the image, and report nothing
        raise DataError("the image cannot be decoded (it is damaged, or of another size than the file says)")
    pixels = np.empty((height, width, 3), np.uint8)
    whole_image = (height, width, 0, 0, 1, 1, False, False)  # size and offset of the crop, scale 1/1, no cropping, no flip
    if _library().imdecode(data.ctypes.data, data.size, height, width, pixels.ctypes.data, *whole_image) != 0:
        raise DataError("the image cannot be decoded (libjpeg-turbo finds it damaged)")
    return pixels


def size_of_jpeg(data: memoryview) -> tuple[int, int] | None:
    """Read (height, width) from the frame header of a JPEG. Returns None if there is no frame header."""
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(data[at + 5 : at + 7]), int.from_bytes(data[at + 7 : at + 9])
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    return None


@cache
def _library() -> ctypes.CDLL:
    """Load the shared library without its package. Importing the package takes 3 s, and sets torch's number of threads to 1."""
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
    pointer, number, flag = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_bool
    # The source and its length, height and width, the target, crop size, crop offset, scale, and two flags.
    library.imdecode.argtypes = [pointer, ctypes.c_uint64, *[number] * 2, pointer, *[number] * 6, flag, flag]
    return library
