"""Encoded bytes -> an RGB image."""

from __future__ import annotations

import io

from PIL import Image

from data_pipelines.errors import DataError

FORMATS = ("JPEG", "PNG")
"""The decoders that data may reach. Pillow has dozens more; what data brings must not choose among them."""


def looks_like_image(data: bytes) -> bool:
    """Whether the header is that of a format that decode reads. Costs next to nothing; says nothing of the rest."""
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS) is not None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False


def decode(data: bytes) -> Image.Image:
    """Decode to RGB. Raises DataError (without a place: the caller knows it) for anything that is no whole image."""
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.mode.startswith("I"):  # 16-bit grey, which Pillow would cut off at 255 instead of scaling it
            image = image.point(lambda value: value * (1 / 257)).convert("L")
        return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"the image cannot be decoded ({str(error).split(' <_io')[0]})") from None
