"""Encoded bytes -> an RGB image, and back."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from data_pipelines.errors import DataError

EXTENSION_OF = {".jpg": "jpg", ".jpeg": "jpg", ".png": "png"}
"""File suffixes of images (in lower case), and the extension that they get in a shard."""

FORMATS = ("JPEG", "PNG")
"""The decoders that data may reach. Pillow has dozens more; what data brings must not choose among them."""

MAX_PIXELS = 178_956_970
"""Above it an image is refused before it is decoded: a few bytes can claim to be gigapixels. Pillow's own limit for an error."""
MAX_SIDE = 65_500
"""Pixels. No JPEG, and no image in an FFCV file, can be longer."""

Pixels = Image.Image | np.ndarray
"""What a data set gives: an RGB image, as Pillow's or as uint8 [H, W, 3], whichever costs less to make; or event frames [T, 2, H, W]."""


def decode(data: bytes) -> Image.Image:
    """Decode to RGB. Raises DataError (without a place: the caller knows it) for anything that is no whole image."""
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels are more than {MAX_PIXELS}")
        if max(image.size) > MAX_SIDE:
            raise ValueError(f"{image.width} x {image.height} pixels: no side may be longer than {MAX_SIDE}")
        if image.mode.startswith("I"):  # 16-bit grey, which Pillow would cut off at 255 instead of scaling it
            image = image.point(lambda value: value * (1 / 257)).convert("L")
        return image.convert("RGB")
    except Exception as error:  # Pillow's decoders raise nearly anything for damage, assertions included
        raise DataError(f"the image cannot be decoded ({str(error).split(' <_io')[0] or type(error).__name__})") from None


def encode_png(pixels: np.ndarray) -> bytes:
    """uint8 [H, W] or [H, W, 3] -> the bytes of a PNG, which keep every pixel."""
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, format="PNG")
    return png.getvalue()


def encode_jpeg(image: Image.Image, quality: int) -> bytes:
    jpeg = io.BytesIO()
    image.save(jpeg, format="JPEG", quality=quality)
    return jpeg.getvalue()
