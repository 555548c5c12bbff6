"""Tests unreadable images: training stops at them or replaces them, the same on every layout; evaluation always stops."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from data_pipelines.config import AugmentConfig, DataConfig
from data_pipelines.errors import DataError
from data_pipelines.formats.manifest import Format
from data_pipelines.formats.sample import RawSample
from data_pipelines.loading.batch import Batch
from data_pipelines.loading.dataloader import evaluation_batches, train_batches
from data_pipelines.loading.dataset import DataSet
from data_pipelines.loading.micro_batches import MAX_CONSECUTIVE_BAD
from data_pipelines.loading.open_dataset import open_dataset
from data_pipelines.loading.rng import fork_rng, seed_rng
from data_pipelines.loading.sample_order import Shuffle
from data_pipelines.loading.sampler import TrainSampler
from data_pipelines.loading.transforms import train_transform
from tests.conftest import stored
from tests.unit.conftest import PER_SHARD, SAMPLES, MemorySource, error_of, keys_of, noise_png, overwrite_image, reseal, rewrite_members

pytestmark = pytest.mark.ffcv  # each set is written in both formats

FORMATS: tuple[Format, ...] = ("wds", "ffcv")
both_formats = pytest.mark.parametrize("format", FORMATS)
SEED, GLOBAL_BATCH = 5, 6
STEPS = 4 * (SAMPLES // GLOBAL_BATCH)
BAD = (0, 4, 5, 6, SAMPLES - 1)
"""The numbers of the damaged samples: one alone, three side by side, and the last one. After the last sample comes sample 0."""
REPLACEMENT = {0: 1, 4: 7, 5: 7, 6: 7, SAMPLES - 1: 1}


def config(**values: Any) -> DataConfig:
    values = {"image_size": 16, "workers": 0, "on_bad_sample": "skip", **values}
    return DataConfig(train=Path("train"), val=Path("val"), **values)


@pytest.fixture(scope="module")
def sound(source: MemorySource, tmp_path_factory: pytest.TempPathFactory) -> dict[str, DataSet]:
    root = tmp_path_factory.mktemp("sound")
    return {format: open_dataset(stored(source, root / format, format, samples_per_shard=PER_SHARD, mode="jpg")) for format in FORMATS}


@pytest.fixture(scope="module")
def damaged(source: MemorySource, tmp_path_factory: pytest.TempPathFactory) -> dict[str, DataSet]:
    """The sets of `sets`, with the images of BAD damaged."""
    root = tmp_path_factory.mktemp("damaged")
    sets = {format: open_dataset(stored(source, root / format, format, samples_per_shard=PER_SHARD, mode="jpg")) for format in FORMATS}
    for data in sets.values():
        for sample in BAD:
            overwrite_image(data, data.index.key_of(sample))
    return sets


def sampler(rank: int = 0, world_size: int = 1, micro_batch: int = 3, samples: int = SAMPLES) -> TrainSampler:
    return TrainSampler(Shuffle(SEED, (samples,)), GLOBAL_BATCH, micro_batch, rank, world_size)


def train(data: DataSet, taken: DataConfig | None = None, **layout: int) -> list[Batch]:
    return list(train_batches(taken or config(), data, sampler(**layout), 0, STEPS))


def assert_same(one: list[Batch], other: list[Batch]) -> None:
    assert len(one) == len(other) > 0
    for left, right in zip(one, other, strict=True):
        assert (left.keys, left.skipped) == (right.keys, right.skipped)
        assert torch.equal(left.labels_B, right.labels_B)
        assert torch.equal(left.images_BCHW, right.images_BCHW)


def visits(batches: Iterable[Batch]) -> list[tuple[str, int, bytes]]:
    return [
        (key, int(label), image.numpy().tobytes())
        for batch in batches
        for key, label, image in zip(batch.keys, batch.labels_B, batch.images_BCHW, strict=True)
    ]


# --- skip --------------------------------------------------------------------------------------------------


@both_formats
def test_the_next_readable_sample_in_the_order_of_storage_takes_the_place_of_a_bad_one(
    source: MemorySource, damaged: dict[str, DataSet], format: Format
) -> None:
    data, label_of = damaged[format], {sample.key: sample.label for sample in source.samples}
    asked = [sample for micro_batch in sampler().iterate_steps(0, STEPS) for _, sample in micro_batch]
    assert set(BAD) <= set(asked)
    taken = [(key, label) for key, label, _ in visits(train(data))]
    keys = [data.index.key_of(REPLACEMENT.get(sample, sample)) for sample in asked]
    assert taken == [(key, label_of[key]) for key in keys]


@both_formats
def test_the_replacement_is_augmented_with_the_draws_of_the_sample_that_was_asked_for(damaged: dict[str, DataSet], format: Format) -> None:
    data, transform = damaged[format], train_transform(config())
    expected = []
    with fork_rng():
        for micro_batch in sampler().iterate_steps(0, STEPS):
            for epoch, asked in micro_batch:
                pixels = data.read(REPLACEMENT.get(asked, asked))
                seed_rng(SEED, epoch, asked)
                expected.append(transform(pixels).permute(2, 0, 1).contiguous().numpy().tobytes())
    assert [image for *_, image in visits(train(data))] == expected


@both_formats
def test_sound_samples_are_what_they_are_without_the_bad_ones(
    sound: dict[str, DataSet], damaged: dict[str, DataSet], format: Format
) -> None:
    asked = [sample for micro_batch in sampler().iterate_steps(0, STEPS) for _, sample in micro_batch]
    pairs = zip(asked, visits(train(sound[format])), visits(train(damaged[format])), strict=True)
    same = [one == other for sample, one, other in pairs if sample not in BAD]
    assert all(same)
    assert 0 < len(same) < len(asked)


@both_formats
def test_every_bad_sample_is_named_with_shard_and_key_in_the_batch_that_asked_for_it(damaged: dict[str, DataSet], format: Format) -> None:
    data = damaged[format]
    bad_before = {0: [0], 4: [4, 5, 6], 5: [5, 6], 6: [6], SAMPLES - 1: [SAMPLES - 1, 0]}
    for micro_batches, batch in zip(sampler().iterate_steps(0, STEPS), train(data), strict=True):
        expected = [f"{data.describe(bad)}: the image cannot be decoded" for _, asked in micro_batches for bad in bad_before.get(asked, [])]
        assert [line.split(" (")[0] for line in batch.skipped] == expected


@both_formats
def test_of_a_sound_set_nothing_is_skipped(sound: dict[str, DataSet], format: Format) -> None:
    assert [batch.skipped for batch in train(sound[format])] == [[]] * (STEPS * 2)


@both_formats
def test_replacements_are_the_same_every_time(damaged: dict[str, DataSet], format: Format) -> None:
    first = train(damaged[format])
    assert_same(train(damaged[format]), first)


@pytest.mark.slow
@both_formats
def test_replacements_are_the_same_with_loader_processes(damaged: dict[str, DataSet], format: Format) -> None:
    assert_same(train(damaged[format], config(workers=2)), train(damaged[format]))


@both_formats
@pytest.mark.parametrize("world_size", [2, 3])
def test_replacements_are_the_same_at_any_world_size(damaged: dict[str, DataSet], format: Format, world_size: int) -> None:
    alone = train(damaged[format], micro_batch=1)
    per_rank = [train(damaged[format], micro_batch=1, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert_same([batch for side_by_side in zip(*per_rank, strict=True) for batch in side_by_side], alone)


def many(samples: int, bad: Iterable[int], folder: Path) -> DataSet:
    image = noise_png(0, 8)
    data = open_dataset(
        stored(MemorySource([RawSample(f"{n:04d}", "png", image, 0) for n in range(samples)]), folder, samples_per_shard=1000)
    )
    for sample in bad:
        overwrite_image(data, data.index.key_of(sample))
    return data


def test_a_hundred_bad_samples_in_a_row_are_an_error_and_one_less_is_not(tmp_path: Path) -> None:
    for bad, fails in ((MAX_CONSECUTIVE_BAD, True), (MAX_CONSECUTIVE_BAD - 1, False)):
        data = many(150, range(20, 20 + bad), tmp_path / str(bad))
        taken = TrainSampler(Shuffle(SEED, (150,)), 150, 150)
        batches = train_batches(config(), data, taken, 0, 1)
        if fails:
            text = error_of(lambda batches=batches: list(batches), f"{MAX_CONSECUTIVE_BAD} samples in a row cannot be read", data.location)
            assert f"sample {data.index.key_of(119)} in " in text
        else:
            (batch,) = batches
            assert len(batch.skipped) == bad * (bad + 1) / 2
    assert MAX_CONSECUTIVE_BAD == 100


def test_a_small_set_of_bad_samples_alone_is_an_error(tmp_path: Path) -> None:
    data = many(6, range(6), tmp_path / "set")
    error_of(lambda: list(train_batches(config(), data, sampler(samples=6), 0, 1)), "100 samples in a row cannot be read")


# --- raise -------------------------------------------------------------------------------------------------


def test_raising_is_the_default() -> None:
    assert DataConfig(train=Path("train"), val=Path("val")).on_bad_sample == "raise"


@both_formats
def test_unless_told_to_skip_training_stops_at_the_first_bad_sample(damaged: dict[str, DataSet], format: Format) -> None:
    data, delivered = damaged[format], []

    def take() -> None:
        delivered.extend(train_batches(config(on_bad_sample="raise"), data, sampler(), 0, STEPS))

    text = error_of(take, data.location, "cannot be decoded", "prepare it again")
    micro_batches = list(sampler().iterate_steps(0, STEPS))
    first = next(number for number, micro_batch in enumerate(micro_batches) if set(BAD) & {sample for _, sample in micro_batch})
    assert len(delivered) == first
    bad = next(sample for _, sample in micro_batches[first] if sample in BAD)
    assert text.startswith(f"{data.describe(bad)}: ")


@both_formats
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_evaluation_stops_at_a_bad_sample_even_if_training_skips_them(damaged: dict[str, DataSet], format: Format, workers: int) -> None:
    data = damaged[format]
    error_of(lambda: list(evaluation_batches(config(workers=workers), data, batch=4, rank=0, world_size=1)), data.describe(0))


# --- hostile and odd images --------------------------------------------------------------------------------


def with_image(source: MemorySource, folder: Path, image: bytes) -> DataSet:
    """Write `source` as tar shards with its eighth image replaced. `prepare_dataset` would refuse such an image."""
    stored(source, folder, samples_per_shard=PER_SHARD)
    for path in folder.glob("shard-*.tar"):
        rewrite_members(path, lambda name, data: image if name == f"{source[7].key}.png" else data)
    reseal(folder)
    return open_dataset(folder)


def bomb() -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(bytes(100_000))
    chunks = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in (header, data, b"IEND")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_an_image_that_claims_gigapixels_is_refused_or_skipped_like_any_bad_one(source: MemorySource, tmp_path: Path) -> None:
    data = with_image(source, tmp_path / "set", bomb())
    error_of(lambda: list(evaluation_batches(config(), data, batch=4, rank=0, world_size=1)), source[7].key, "pixels")
    skipped = [line for batch in train(data) for line in batch.skipped]
    assert skipped
    assert all(f"sample {source[7].key} in " in line and "pixels" in line for line in skipped)


def tiny_png(width: int, height: int) -> bytes:
    png = io.BytesIO()
    Image.new("RGB", (width, height), (200, 100, 30)).save(png, format="PNG")
    return png.getvalue()


@both_formats
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2, 1)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "area"])
@pytest.mark.parametrize("augment", [AugmentConfig(), AugmentConfig(auto_augment="rand-m9-mstd0.5-inc1", erase=1.0)], ids=["plain", "all"])
def test_an_image_of_hardly_any_pixels_gives_a_batch_or_one_sentence(
    source: MemorySource, tmp_path: Path, format: Format, size: tuple[int, int], interpolation: str, augment: AugmentConfig
) -> None:
    samples = [replace(sample, data=tiny_png(*size)) if number == 7 else sample for number, sample in enumerate(source.samples)]
    data = open_dataset(stored(MemorySource(samples), tmp_path / "set", format))
    taken = config(interpolation=interpolation, augment=augment)
    skipping = train(data, taken)
    assert {batch.images_BCHW.shape for batch in skipping} == {(3, 3, 16, 16)}
    skipped = [line for batch in skipping for line in batch.skipped]
    assert all(f"sample {source[7].key} in " in line and "\n" not in line for line in skipped)
    for batches in (
        evaluation_batches(taken, data, batch=4, rank=0, world_size=1),
        train_batches(taken.model_copy(update={"on_bad_sample": "raise"}), data, sampler(), 0, STEPS),
    ):
        try:
            assert all(batch.images_BCHW.shape[1:] == (3, 16, 16) for batch in batches)
        except DataError as error:
            assert f"sample {source[7].key} in " in str(error)  # noqa: PT017
    assert source[7].key in keys_of(data)
