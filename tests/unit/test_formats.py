"""Tests that a run gets the same batches from WebDataset and from FFCV, however often and wherever it is interrupted."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_pipelines.config import AugmentConfig, DataConfig
from data_pipelines.formats.manifest import Format
from data_pipelines.formats.sample import RawSample
from data_pipelines.loading.batch import Batch
from data_pipelines.loading.dataloader import evaluation_batches, train_batches, train_sampler
from data_pipelines.loading.dataset import DataSet
from data_pipelines.loading.open_dataset import open_dataset
from data_pipelines.loading.sampler import TrainSampler
from tests.conftest import stored
from tests.unit.conftest import CLASSES, PER_SHARD, MemorySource, keys_of, noise_png

pytestmark = pytest.mark.ffcv  # each set is written in both formats

FORMATS: tuple[Format, ...] = ("wds", "ffcv")
GLOBAL_BATCH, EPOCHS = 6, 2


@pytest.fixture(scope="module")
def sets(source: MemorySource, tmp_path_factory: pytest.TempPathFactory) -> dict[str, DataSet]:
    """23 images of noise in five blocks, in both formats."""
    root = tmp_path_factory.mktemp("formats")
    return {format: open_dataset(stored(source, root / format, format, samples_per_shard=PER_SHARD)) for format in FORMATS}


def config(**values: Any) -> DataConfig:
    values = {"image_size": 16, "workers": 0, "shuffle_window": 2, **values}
    return DataConfig(train=Path("train"), val=Path("val"), **values)


def assert_same(one: Sequence[Batch], other: Sequence[Batch]) -> None:
    """Check that two lists of batches are equal bit for bit."""
    assert len(one) == len(other) > 0
    for left, right in zip(one, other, strict=True):
        assert left.keys == right.keys
        assert torch.equal(left.labels_B, right.labels_B)
        assert left.images_BCHW.dtype == right.images_BCHW.dtype
        assert torch.equal(left.images_BCHW, right.images_BCHW)


def trained_on(taken: DataConfig, data: DataSet) -> list[Batch]:
    sampler = train_sampler(taken, data, 5, global_batch=GLOBAL_BATCH, micro_batch=3, rank=0, world_size=1)
    return list(train_batches(taken, data, sampler, 0, EPOCHS * sampler.steps_per_epoch))


def evaluated(taken: DataConfig, data: DataSet) -> list[Batch]:
    return [batch for rank in range(2) for batch in evaluation_batches(taken, data, batch=4, rank=rank, world_size=2)]


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "area"])
@pytest.mark.parametrize("shuffle", ["full", "blocks"])
@pytest.mark.parametrize("augment", [AugmentConfig(), AugmentConfig(auto_augment="rand-m9-mstd0.5-inc1", erase=0.5)], ids=["plain", "all"])
def test_both_formats_give_the_same_batches_of_training(
    sets: dict[str, DataSet], interpolation: str, shuffle: str, augment: AugmentConfig
) -> None:
    taken = config(interpolation=interpolation, shuffle=shuffle, augment=augment)
    batches = trained_on(taken, sets["wds"])
    assert_same(trained_on(taken, sets["ffcv"]), batches)
    assert len({tuple(batch.keys) for batch in batches}) == len(batches)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "area"])
def test_both_formats_give_the_same_batches_of_evaluation(sets: dict[str, DataSet], interpolation: str) -> None:
    taken = config(interpolation=interpolation)
    assert_same(evaluated(taken, sets["ffcv"]), evaluated(taken, sets["wds"]))


@pytest.mark.slow
@pytest.mark.parametrize(("interpolation", "shuffle"), [("bicubic", "full"), ("area", "blocks")])
def test_a_worker_process_changes_nothing_in_either_format(sets: dict[str, DataSet], interpolation: str, shuffle: str) -> None:
    alone, helped = (config(interpolation=interpolation, shuffle=shuffle, workers=workers) for workers in (0, 1))
    expected_training, expected_evaluation = trained_on(alone, sets["wds"]), evaluated(alone, sets["wds"])
    for data in (sets["ffcv"], sets["wds"]):
        assert_same(trained_on(helped, data), expected_training)
        assert_same(evaluated(helped, data), expected_evaluation)


def test_shuffling_by_blocks_is_another_order_than_the_full_one(sets: dict[str, DataSet]) -> None:
    for data in sets.values():
        full, blocks = ([batch.keys for batch in trained_on(config(shuffle=shuffle), data)] for shuffle in ("full", "blocks"))
        assert full != blocks


# --- FFCV files --------------------------------------------------------------------------------------------


def smooth_png(number: int) -> bytes:
    """Make an image of 48x40 pixels in which brightness changes slowly."""
    rows, columns = np.mgrid[0:40, 0:48]
    waves = [128 + 100 * np.sin((rows * (1 + channel) + columns * number) / 40) for channel in range(3)]
    png = io.BytesIO()
    Image.fromarray(np.stack(waves, -1).astype(np.uint8)).save(png, format="PNG")
    return png.getvalue()


@pytest.fixture(scope="module")
def smooth() -> MemorySource:
    return MemorySource([RawSample(f"picture-{number}", "png", smooth_png(number), number % 3) for number in range(12)])


def test_ffcv_jpegs_show_about_the_pixels_that_were_stored(smooth: MemorySource, tmp_path: Path) -> None:
    raw, fine, coarse = (
        open_dataset(stored(smooth, tmp_path / name, "ffcv", **storage))
        for name, storage in (("raw", {}), ("fine", {"mode": "jpg", "quality": 95}), ("coarse", {"mode": "jpg", "quality": 5}))
    )
    assert keys_of(raw) == keys_of(fine) == keys_of(coarse)
    for sample in range(len(raw)):
        pixels = np.asarray(raw.read(sample), int)
        of_fine, of_coarse = (np.abs(np.asarray(data.read(sample), int) - pixels).mean() for data in (fine, coarse))
        assert of_fine < 5 < of_coarse


def test_raw_pixels_are_those_of_the_images(smooth: MemorySource, tmp_path: Path) -> None:
    data = open_dataset(stored(smooth, tmp_path / "set", "ffcv"))
    by_key = {sample.key: sample.data for sample in smooth.samples}
    for sample, key in enumerate(keys_of(data)):
        assert np.array_equal(data.read(sample), np.asarray(Image.open(io.BytesIO(by_key[key]))))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["raw", "jpg"])
def test_ffcvs_own_loader_reads_the_file_as_we_do(smooth: MemorySource, tmp_path: Path, mode: str) -> None:
    from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption

    data = open_dataset(stored(smooth, tmp_path / "set", "ffcv", samples_per_shard=5, mode=mode))
    pipelines = {"image": [SimpleRGBImageDecoder()], "label": [IntDecoder()]}
    path = str(tmp_path / "set" / "samples.beton")
    loader = Loader(path, batch_size=4, num_workers=1, order=OrderOption.SEQUENTIAL, pipelines=pipelines)
    # FFCV's loader reuses its buffers, so the images are copied.
    images, labels = zip(*((np.array(images), np.array(labels).ravel()) for images, labels in loader), strict=True)
    assert np.concatenate(labels).tolist() == data.index["label"].tolist()
    assert np.array_equal(np.concatenate(images), [data.read(sample) for sample in range(len(data))])


# --- the digest --------------------------------------------------------------------------------------------


def test_the_digest_is_that_of_samples_and_order_whatever_the_format(source: MemorySource, sets: dict[str, DataSet]) -> None:
    assert keys_of(sets["wds"]) == keys_of(sets["ffcv"])
    assert sets["wds"].manifest.blocks == sets["ffcv"].manifest.blocks == [5, 5, 5, 5, 3]
    assert sets["wds"].digest() == sets["ffcv"].digest()


@pytest.mark.parametrize("format", FORMATS)
def test_the_digest_does_not_change_when_a_set_is_copied_and_opened_elsewhere(
    source: MemorySource, sets: dict[str, DataSet], tmp_path: Path, format: Format
) -> None:
    assert open_dataset(stored(source, tmp_path / "elsewhere", format, samples_per_shard=PER_SHARD)).digest() == sets[format].digest()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("other", [{"seed": 1}, {"samples_per_shard": PER_SHARD + 1}])
def test_another_order_or_other_blocks_have_another_digest(
    source: MemorySource, sets: dict[str, DataSet], tmp_path: Path, format: Format, other: dict[str, int]
) -> None:
    data = open_dataset(stored(source, tmp_path / "other", format, **({"samples_per_shard": PER_SHARD} | other)))
    assert data.digest() != sets[format].digest()


def test_other_samples_have_another_digest(source: MemorySource, sets: dict[str, DataSet], tmp_path: Path) -> None:
    renamed = [RawSample(f"{sample.key[:-2]}{number + 1:02d}", *list(vars(sample).values())[1:]) for number, sample in enumerate(source)]
    data = open_dataset(stored(MemorySource(renamed), tmp_path / "other", samples_per_shard=PER_SHARD))
    assert data.digest() != sets["wds"].digest()


# --- any layout of ranks, any interruption -----------------------------------------------------------------

SIZES, BLOCKS = (1, 5, 9, 14), (1, 3, 50)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Prepared sets of 8x8 images by (format, samples, samples per shard). Each is made when it is first asked for."""
    root = tmp_path_factory.mktemp("pool")

    @cache
    def prepared(format: Format, samples: int, per_shard: int) -> DataSet:
        images = [RawSample(f"{number:02d}", "png", noise_png(number, 8), number % len(CLASSES)) for number in range(samples)]
        return open_dataset(stored(MemorySource(images), root / f"{format}-{samples}-{per_shard}", format, samples_per_shard=per_shard))

    return prepared


@dataclass(frozen=True)
class Layout:
    """How one run divides its global batches among ranks and accumulation steps."""

    micro_batch: int
    world_size: int

    def sampler(self, taken: DataConfig, data: DataSet, seed: int, global_batch: int, rank: int) -> TrainSampler:
        return train_sampler(
            taken, data, seed, global_batch=global_batch, micro_batch=self.micro_batch, rank=rank, world_size=self.world_size
        )


@st.composite
def two_layouts(draw: st.DrawFn, samples: int) -> tuple[int, Layout, Layout]:
    """Draw a global batch of at most `samples` samples, and two layouts of it with the same micro-batch."""
    micro_batch = draw(st.integers(1, min(3, samples)))
    micro_batches = draw(st.integers(1, samples // micro_batch))
    worlds = [world_size for world_size in range(1, micro_batches + 1) if micro_batches % world_size == 0]
    return micro_batch * micro_batches, *(Layout(micro_batch, draw(st.sampled_from(worlds))) for _ in range(2))


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=300)
@given(given_data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_any_interruption_and_any_world_size_continue_the_same_run(pool: Any, format: Format, given_data: st.DataObject, seed: int) -> None:
    draw = given_data.draw
    data: DataSet = pool(format, draw(st.sampled_from(SIZES)), draw(st.sampled_from(BLOCKS)))
    samples = len(data)
    shuffle = draw(st.sampled_from(["full", "blocks"]))
    taken = config(shuffle=shuffle, shuffle_window=draw(st.integers(1, 4)), interpolation="bilinear", augment=AugmentConfig(erase=0.5))
    global_batch, before, after = draw(two_layouts(samples))
    per_epoch = samples // global_batch
    last = EPOCHS * per_epoch
    interrupted_at = draw(st.integers(0, last))

    def steps(layout: Layout, first: int, end: int) -> list[list[tuple[str, bytes]]]:
        """List what each global step sees: keys and pixels, in the order of its micro-batches."""
        per_rank = []
        for rank in range(layout.world_size):
            sampler = layout.sampler(taken, data, seed, global_batch, rank)
            per_rank.append(list(train_batches(taken, data, sampler, first, end)))
            assert len(per_rank[-1]) == (end - first) * sampler.accumulation
        in_order = [batch for side_by_side in zip(*per_rank, strict=True) for batch in side_by_side]
        of_step = global_batch // layout.micro_batch
        grouped = [in_order[start : start + of_step] for start in range(0, len(in_order), of_step)]
        return [
            [(key, image.numpy().tobytes()) for batch in group for key, image in zip(batch.keys, batch.images_BCHW, strict=True)]
            for group in grouped
        ]

    whole = steps(Layout(before.micro_batch, 1), 0, last)
    for epoch in range(EPOCHS):
        visited = [key for step in whole[epoch * per_epoch : (epoch + 1) * per_epoch] for key, _ in step]
        assert len(visited) == len(set(visited)) == samples - samples % global_batch
        assert set(visited) <= set(keys_of(data))
    resumed = steps(before, 0, interrupted_at) + steps(after, interrupted_at, last)
    assert resumed == whole
