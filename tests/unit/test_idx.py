"""MNIST's format, as it is published for MNIST, Fashion-MNIST and others: generated files, whole and damaged."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.errors import DataError
from data_pipelines.sources.idx import open_idx
from data_pipelines.sources.layouts import open_splits
from tests.conftest import FASHION
from tests.unit.test_published_sets import check_protocol, labels_of, pixels_of

SIZES = {"train": 12, "t10k": 5}


def idx(values: np.ndarray) -> bytes:
    return bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape) + values.astype(np.uint8).tobytes()


def images(prefix: str) -> np.ndarray:
    return np.random.default_rng(SIZES[prefix]).integers(0, 256, (SIZES[prefix], 7, 9))


@pytest.fixture(params=["", ".gz"])
def published(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    for prefix, count in SIZES.items():
        for name, values in ((f"{prefix}-images-idx3-ubyte", images(prefix)), (f"{prefix}-labels-idx1-ubyte", np.arange(count) % 4)):
            data = idx(values)
            (tmp_path / f"{name}{request.param}").write_bytes(gzip.compress(data) if request.param else data)
    return tmp_path


@pytest.mark.parametrize("layout", ["auto", "mnist"])
def test_images_and_labels(published: Path, layout: str) -> None:
    splits = open_splits(str(published), layout)
    assert list(splits) == ["train", "val"]
    for prefix, source in zip(SIZES, splits.values(), strict=True):
        check_protocol(source)
        assert source.classes == ["0", "1", "2", "3"]
        assert labels_of(source) == [number % 4 for number in range(SIZES[prefix])]
        assert np.array_equal(pixels_of(source, 3), images(prefix)[3])


def the_file(published: Path, beginning: str) -> Path:
    return next(published.glob(f"{beginning}*"))


@pytest.mark.parametrize("beginning", ["train-labels", "t10k-images", "t10k-labels"])
def test_a_missing_file_is_named(published: Path, beginning: str) -> None:
    the_file(published, beginning).unlink()
    with pytest.raises(DataError, match=f"lacks {beginning}-idx"):
        open_idx(published)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is no IDX file"),
        (idx(np.zeros(12)), "is no IDX file of bytes with 3 axes"),
        (idx(np.zeros((12, 7, 9)))[:-1], "holds 755"),
        (idx(np.zeros((12, 7, 9))) + b"x", "holds 757"),
        (idx(np.zeros((11, 7, 9))), "holds 11 images, and train-labels"),
        (idx(np.zeros((0, 7, 9))), "holds 0 images, and train-labels"),
        (bytes((0, 0, 13, 3)) + bytes(12), "is no IDX file of bytes"),
        (bytes((0, 0, 8, 3)) + b"\xff" * 12, "copy it again"),
    ],
)
def test_a_damaged_file_is_named(published: Path, content: bytes, words: str) -> None:
    path = the_file(published, "train-images")
    path.write_bytes(gzip.compress(content) if path.suffix else content)
    with pytest.raises(DataError, match=words) as error:
        open_idx(published)
    assert str(path) in str(error.value)


def test_a_damaged_archive_and_labels_of_other_classes(published: Path) -> None:
    labels = the_file(published, "t10k-labels")
    data = idx(np.full(5, 7))
    labels.write_bytes(gzip.compress(data) if labels.suffix else data)
    with pytest.raises(DataError, match="has the label 7, and the training set has 4 classes"):
        open_idx(published)
    if labels.suffix:
        labels.write_bytes(gzip.compress(data)[:-9])
        with pytest.raises(DataError, match="is damaged"):
            open_idx(published)


@pytest.mark.fashion
def test_the_published_files_of_fashion_mnist() -> None:
    """70,000 real images; the first training image is an ankle boot, which is class 9."""
    splits = open_splits(str(FASHION), "auto")
    assert {name: len(source) for name, source in splits.items()} == {"train": 60_000, "val": 10_000}
    assert len(splits["train"].classes) == 10
    first = splits["train"][0]
    assert first.label == 9
    pixels = pixels_of(splits["train"], 0)
    assert pixels.shape[:2] == (28, 28)
    assert pixels.max() == 255
