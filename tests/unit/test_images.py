"""Tests the decoding and encoding of images."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from data_pipelines.errors import DataError
from data_pipelines.formats.images import decode_image, encode_jpeg, encode_png


def encoded(image: Image.Image, format: str = "PNG") -> bytes:
    data = io.BytesIO()
    image.save(data, format=format)
    return data.getvalue()


def test_16_bit_grey_is_scaled_to_8_bits() -> None:
    values = np.array([[0, 257, 30000, 65535]], np.uint16)
    assert np.array(decode_image(encoded(Image.fromarray(values))))[0, :, 0].tolist() == [0, 1, 116, 255]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_other_modes_become_rgb(mode: str) -> None:
    image = decode_image(encoded(Image.new(mode, (3, 2))))
    assert (image.mode, image.size) == ("RGB", (3, 2))


@pytest.mark.parametrize("data", [b"", b"text", encoded(Image.new("RGB", (2, 2)), "GIF")])
def test_what_is_no_jpeg_or_png_is_refused(data: bytes) -> None:
    with pytest.raises(DataError, match="cannot be decoded"):
        decode_image(data)


def test_a_cut_off_image_is_refused() -> None:
    data = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)))[:-3000]
    with pytest.raises(DataError, match="cannot be decoded"):
        decode_image(data)


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
def test_png_keeps_every_pixel(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(encode_png(pixels)))), pixels)


def test_jpeg_is_smaller_the_lower_its_quality() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    sizes = [len(encode_jpeg(image, quality)) for quality in (10, 50, 90)]
    assert sizes == sorted(set(sizes))
    assert decode_image(encode_jpeg(image, 50)).size == (64, 64)


def png_claiming(width: int, height: int) -> bytes:
    """Make a PNG whose header claims this size, but which holds a few pixels only."""
    data = encoded(Image.new("RGB", (2, 2)))
    header = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


@pytest.mark.parametrize("size", [(60_000, 60_000), (13_378, 13_378), (178_956_971, 1), (2**31 - 1, 2**31 - 1)])
def test_a_few_bytes_that_claim_gigapixels_are_refused_before_memory_is_taken(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # some libraries switch off Pillow's own limit
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="pixels"):
            decode_image(png_claiming(*size))
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
