"""Encoded bytes -> an RGB image."""

from __future__ import annotations

import io

from PIL import Image

from data_pipelines.errors import DataError

FORMATS = ("JPEG", "PNG")
"""The decoders that data may reach. Pillow has dozens more; what data brings must not choose among them."""


def decode(data: bytes) -> Image.Image:
    """Decode to RGB. Raises DataError (without a place: the caller knows it) for anything that is no whole image."""
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"the image cannot be decoded ({str(error).split(' <_io')[0]})") from None
