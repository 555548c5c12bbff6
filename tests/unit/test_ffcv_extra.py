"""The extra `ffcv` is installed and works: what it wrote it reads back, in the order that it is given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest


@pytest.mark.slow
def test_ffcv_reads_back_what_it_wrote(tmp_path: Path) -> None:
    from ffcv.fields import IntField, RGBImageField
    from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.writer import DatasetWriter

    pixels = np.random.default_rng(0).integers(0, 256, (10, 16, 16, 3), dtype=np.uint8)
    path = str(tmp_path / "set.beton")
    writer = DatasetWriter(path, {"image": RGBImageField(write_mode="raw"), "label": IntField()}, num_workers=1)
    writer.from_indexed_dataset([(pixels[index], index) for index in range(10)])
    pipelines = {"image": [SimpleRGBImageDecoder()], "label": [IntDecoder()]}
    chosen = [7, 2, 9, 4]
    loader = Loader(path, batch_size=2, num_workers=1, order=OrderOption.SEQUENTIAL, indices=chosen, pipelines=pipelines)
    batches = [(np.array(images), np.array(labels).ravel()) for images, labels in loader]
    assert [label for _, labels in batches for label in labels] == chosen
    assert np.array_equal(np.concatenate([images for images, _ in batches]), pixels[chosen])
