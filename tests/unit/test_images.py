"""Encoded bytes -> RGB."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from data_pipelines.errors import DataError
from data_pipelines.images import decode, looks_like_image


def encoded(image: Image.Image, format: str = "PNG") -> bytes:
    data = io.BytesIO()
    image.save(data, format=format)
    return data.getvalue()


def test_16_bit_grey_is_scaled_to_8_bits() -> None:
    values = np.array([[0, 257, 30000, 65535]], np.uint16)
    assert np.array(decode(encoded(Image.fromarray(values))))[0, :, 0].tolist() == [0, 1, 116, 255]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_other_modes_become_rgb(mode: str) -> None:
    image = decode(encoded(Image.new(mode, (3, 2))))
    assert (image.mode, image.size) == ("RGB", (3, 2))


@pytest.mark.parametrize("data", [b"", b"text", encoded(Image.new("RGB", (2, 2)), "GIF")])
def test_what_is_no_jpeg_or_png_is_refused(data: bytes) -> None:
    assert not looks_like_image(data)
    with pytest.raises(DataError, match="cannot be decoded"):
        decode(data)


def test_a_cut_off_image_looks_like_one_and_is_refused() -> None:
    data = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)))[:-3000]
    assert looks_like_image(data)
    with pytest.raises(DataError, match="cannot be decoded"):
        decode(data)
