"""Decodes the bytes of an image file to RGB, and encodes images to PNG and JPEG."""

from __future__ import annotations

import io
from posixpath import splitext

import numpy as np
from PIL import Image

from data_pipelines.errors import DataError
from data_pipelines.storage.passing_trouble import is_passing, unavailable

EXTENSION_OF = {".jpg": "jpg", ".jpeg": "jpg", ".png": "png"}
"""The file suffixes of images in lower case, and the extension that each gets in a shard."""

OTHER_IMAGES = frozenset({".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jxl", ".tif", ".tiff", ".webp"})
"""The file suffixes of images that are not read: they have to be converted first."""
IMAGE_SUFFIXES = OTHER_IMAGES.union(EXTENSION_OF)

FORMATS = ("JPEG", "PNG")
"""The only decoders that data may reach. Pillow has dozens more, and untrusted bytes must not choose among them."""

MAX_PIXELS = 178_956_970
"""Larger images are refused before they are decoded, since a few bytes can claim gigapixels. The number is Pillow's own limit."""
MAX_SIDE = 65_500
"""Longest side in pixels. No JPEG, and no image in an FFCV file, can be longer."""

Pixels = Image.Image | np.ndarray
"""A decoded sample: an RGB image, either Pillow's or uint8 [H, W, 3], whichever is cheaper; or event frames [T, 2, H, W]."""


def is_of_macos(name: str) -> bool:
    """True for a file like ._cat.jpg, in which macOS keeps what another file system cannot hold of cat.jpg. It is never an image."""
    return name.rpartition("/")[2].startswith("._")


def looks_like_image(name: str) -> bool:
    """True for the name of an image, of any format, in a folder or a tar."""
    return splitext(name)[1].lower() in IMAGE_SUFFIXES and not is_of_macos(name)


def decode_image(data: bytes) -> Image.Image:
    """Decode the bytes of a JPEG or PNG file to RGB.

    Raises DataError if they are no complete image, and UnavailableError if memory runs out. Their messages name no file, since only
    the caller knows it.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels are more than {MAX_PIXELS}")
        if max(image.size) > MAX_SIDE:
            raise ValueError(f"{image.width} x {image.height} pixels: no side may be longer than {MAX_SIDE}")
        if image.mode.startswith("I"):  # Pillow would clip 16-bit grey at 255 instead of scaling it
            image = image.point(lambda value: value * (1 / 257)).convert("L")
        return image.convert("RGB")
    except Exception as error:  # for damaged bytes, Pillow's decoders raise nearly any exception, even AssertionError
        if is_passing(error) or "out of memory" in str(error):  # that says nothing about the image
            raise unavailable("the image", error) from None
        raise DataError(f"the image cannot be decoded ({str(error).split(' <_io')[0] or type(error).__name__})") from None


def encode_png(pixels: np.ndarray) -> bytes:
    """Encode pixels, uint8 [H, W] or [H, W, 3], as a PNG. No pixel changes."""
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, format="PNG")
    return png.getvalue()


def encode_jpeg(image: Image.Image, quality: int) -> bytes:
    """Encode an image as a JPEG of this quality in percent."""
    jpeg = io.BytesIO()
    image.save(jpeg, format="JPEG", quality=quality)
    return jpeg.getvalue()
