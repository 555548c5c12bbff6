"""Tests that our description of FFCV's file format, and our use of its decoder, agree with the installed package."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from data_pipelines.errors import DataError
from data_pipelines.formats import ffcv_format
from data_pipelines.formats.turbojpeg import decode_jpeg

pytestmark = pytest.mark.ffcv


def test_the_stated_types_are_the_packages() -> None:
    from ffcv.fields import IntField, RGBImageField
    from ffcv.fields.rgb_image import IMAGE_MODES
    from ffcv.types import ALLOC_TABLE_TYPE, CURRENT_VERSION, TYPE_ID_HANDLER, FieldDescType, HeaderType, get_metadata_type

    def layout(dtype: np.dtype) -> list[tuple[int, int]]:
        """List (offset, bytes) of each column. The names differ, so they are not compared."""
        return [(dtype.fields[name][1], dtype.fields[name][0].itemsize) for name in dtype.names]

    rows = get_metadata_type([RGBImageField(), IntField()])
    for ours, theirs in (
        (ffcv_format.HEADER, HeaderType),
        (ffcv_format.FIELD, FieldDescType),
        (ffcv_format.ALLOCATION, ALLOC_TABLE_TYPE),
        (ffcv_format.ROW, rows),
        (ffcv_format.IMAGE, rows["f0"]),
    ):
        assert (ours.itemsize, layout(ours)) == (theirs.itemsize, layout(theirs))
    assert ffcv_format.VERSION == CURRENT_VERSION
    assert [TYPE_ID_HANDLER[kind] for kind in ffcv_format.FIELDS.values()] == [RGBImageField, IntField]
    assert dict(IMAGE_MODES) == {"jpg": ffcv_format.JPEG, "raw": ffcv_format.RAW}


def smooth_jpeg(height: int, width: int) -> bytes:
    rows, columns = np.mgrid[0:height, 0:width]
    pixels = np.stack([rows * 255 // height, columns * 255 // width, (rows + columns) % 256], -1).astype(np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG", quality=95)
    return data.getvalue()


def test_jpegs_are_decoded_as_pillow_does() -> None:
    data = smooth_jpeg(40, 60)
    ours = decode_jpeg(np.frombuffer(data, np.uint8), 40, 60).astype(int)
    assert np.abs(ours - np.asarray(Image.open(io.BytesIO(data)))).mean() < 2


@pytest.mark.parametrize("size", [(41, 60), (40, 59), (20, 30)])
def test_a_jpeg_of_another_size_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(DataError, match="of another size"):
        decode_jpeg(np.frombuffer(smooth_jpeg(40, 60), np.uint8), *size)


def test_a_jpeg_that_is_cut_off_anywhere_is_refused() -> None:
    data = smooth_jpeg(40, 60)
    for length in range(0, len(data) - 2, 37):
        with pytest.raises(DataError, match="cannot be decoded"):
            decode_jpeg(np.frombuffer(data[:length], np.uint8), 40, 60)


def test_reading_imports_neither_ffcv_nor_numba_and_keeps_torchs_threads() -> None:
    """Importing either costs each loader process seconds, and FFCV sets torch's number of threads to 1."""
    program = """
import io, sys, torch, numpy as np
torch.set_num_threads(2)
from data_pipelines.loading.open_dataset import open_dataset
from data_pipelines.formats.turbojpeg import decode_jpeg, require_ffcv
require_ffcv()
assert torch.get_num_threads() == 2 and not {"ffcv", "numba"} & sys.modules.keys(), sorted(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)
