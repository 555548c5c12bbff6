"""Tests that batches do not depend on workers, ranks or the first step, and that errors reach the training process as one sentence."""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path

import psutil
import pytest
import torch

from data_pipelines.config import AugmentConfig, DataConfig
from data_pipelines.errors import DataError
from data_pipelines.loading.batch import PADDING_LABEL, Batch
from data_pipelines.loading.dataloader import evaluation_batches, train_batches
from data_pipelines.loading.dataset import DataSet
from data_pipelines.loading.open_dataset import open_dataset
from data_pipelines.loading.sample_order import Shuffle
from data_pipelines.loading.sampler import TrainSampler
from tests.unit.conftest import SAMPLES, MemorySource, keys_of, overwrite_image, path_of

SEED, GLOBAL_BATCH = 5, 6
STEPS_PER_EPOCH = SAMPLES // GLOBAL_BATCH
EVERYTHING = AugmentConfig(auto_augment="rand-m9-mstd0.5-inc1", erase=0.5)


def config(workers: int = 0) -> DataConfig:
    return DataConfig(train=Path("train"), val=Path("val"), image_size=16, augment=EVERYTHING, workers=workers)


def sampler(micro_batch: int = 3, rank: int = 0, world_size: int = 1, seed: int = SEED) -> TrainSampler:
    return TrainSampler(Shuffle(seed, (SAMPLES,)), GLOBAL_BATCH, micro_batch, rank, world_size)


def train(shards: DataSet, taken: TrainSampler, first_step: int, last_step: int, workers: int = 0) -> list[Batch]:
    return list(train_batches(config(workers), shards, taken, first_step, last_step))


def evaluate(shards: DataSet, rank: int = 0, world_size: int = 1, batch: int = 4, workers: int = 0) -> list[Batch]:
    return list(evaluation_batches(config(workers), shards, batch=batch, rank=rank, world_size=world_size))


def assert_same(one: Sequence[Batch], other: Sequence[Batch]) -> None:
    """Check that two lists of batches are equal bit for bit."""
    assert len(one) == len(other) > 0
    for left, right in zip(one, other, strict=True):
        assert left.keys == right.keys
        assert torch.equal(left.labels_B, right.labels_B)
        assert torch.equal(left.images_BCHW, right.images_BCHW)


def by_key(batches: Iterable[Batch]) -> dict[str, torch.Tensor]:
    return {key: image for batch in batches for key, image in zip(batch.keys, batch.images_BCHW, strict=True)}


def assert_same_images(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [key for key in one if not torch.equal(one[key], other[key])] == []


# --- training ----------------------------------------------------------------------------------------------


def test_batches_keep_the_contract(source: MemorySource, shards: DataSet) -> None:
    label_of = {sample.key: sample.label for sample in source.samples}
    batches = train(shards, sampler(), 0, STEPS_PER_EPOCH)
    assert len(batches) == STEPS_PER_EPOCH * sampler().accumulation
    for batch in batches:
        assert (batch.images_BCHW.dtype, batch.images_BCHW.shape) == (torch.float32, (3, 3, 16, 16))
        assert batch.labels_B.dtype == torch.int64
        assert batch.labels_B.tolist() == [label_of[key] for key in batch.keys]


@pytest.mark.slow
def test_worker_processes_change_nothing(shards: DataSet) -> None:
    steps = 2 * STEPS_PER_EPOCH + 1  # the last step is in the third epoch
    assert_same(train(shards, sampler(), 0, steps, workers=2), train(shards, sampler(), 0, steps, workers=0))


@pytest.mark.parametrize("first_step", [1, STEPS_PER_EPOCH, STEPS_PER_EPOCH + 2])
def test_a_later_start_is_exactly_the_continuation(shards: DataSet, first_step: int) -> None:
    taken, last_step = sampler(), 2 * STEPS_PER_EPOCH
    whole = train(shards, taken, 0, last_step)
    assert_same(train(shards, taken, first_step, last_step), whole[first_step * taken.accumulation :])


@pytest.mark.parametrize(("micro_batch", "world_size"), [(3, 2), (1, 3), (2, 3), (6, 1), (1, 6)])
def test_the_pixels_of_a_sample_do_not_depend_on_world_size_rank_or_micro_batch(shards: DataSet, micro_batch: int, world_size: int) -> None:
    for epoch in range(2):
        steps = epoch * STEPS_PER_EPOCH, (epoch + 1) * STEPS_PER_EPOCH
        alone = by_key(train(shards, sampler(), *steps))
        together = [batch for rank in range(world_size) for batch in train(shards, sampler(micro_batch, rank, world_size), *steps)]
        assert_same_images(by_key(together), alone)


def test_another_epoch_and_another_seed_augment_otherwise(shards: DataSet) -> None:
    first = by_key(train(shards, sampler(), 0, STEPS_PER_EPOCH))
    for other in (
        by_key(train(shards, sampler(), STEPS_PER_EPOCH, 2 * STEPS_PER_EPOCH)),
        by_key(train(shards, sampler(seed=SEED + 1), 0, STEPS_PER_EPOCH)),
    ):
        shared = first.keys() & other.keys()
        assert len(shared) > SAMPLES // 2
        assert [key for key in shared if torch.equal(first[key], other[key])] == []


def test_two_ranks_together_give_each_sample_of_an_epoch_once(shards: DataSet) -> None:
    keys = Counter(
        key for rank in range(2) for batch in train(shards, sampler(rank=rank, world_size=2), 0, STEPS_PER_EPOCH) for key in batch.keys
    )
    assert set(keys.values()) == {1}
    assert set(keys) <= set(keys_of(shards))
    assert len(keys) == SAMPLES - SAMPLES % GLOBAL_BATCH


def test_a_finished_run_gets_no_batch(shards: DataSet) -> None:
    assert train(shards, sampler(), STEPS_PER_EPOCH, STEPS_PER_EPOCH) == []


# --- evaluation --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 4, 50])
def test_evaluation_counts_each_sample_once_over_all_ranks(source: MemorySource, shards: DataSet, world_size: int, batch: int) -> None:
    per_rank = [evaluate(shards, rank, world_size, batch) for rank in range(world_size)]
    assert len({tuple(len(one.keys) for one in batches) for batches in per_rank}) == 1  # all ranks get batches of the same sizes
    slots = [slot for batches in per_rank for one in batches for slot in zip(one.keys, one.labels_B.tolist(), strict=True)]
    counted = sorted((key, label) for key, label in slots if label != PADDING_LABEL)
    assert counted == sorted((sample.key, sample.label) for sample in source.samples)
    padding = [key for key, label in slots if label == PADDING_LABEL]
    assert padding == [""] * (-SAMPLES % world_size)


@pytest.mark.slow
def test_evaluation_images_do_not_depend_on_world_size_or_workers(shards: DataSet) -> None:
    alone = by_key(evaluate(shards))
    together = by_key(batch for rank in range(3) for batch in evaluate(shards, rank, world_size=3, batch=5, workers=1 if rank == 0 else 0))
    assert together.pop("").shape == (3, 16, 16)
    assert_same_images(together, alone)


def test_more_ranks_than_samples_leave_some_ranks_with_padding_only(source: MemorySource, shards: DataSet) -> None:
    world_size = SAMPLES + 2
    batches = [evaluate(shards, rank, world_size) for rank in range(world_size)]
    assert all(len(of_rank) == 1 for of_rank in batches)
    assert [of_rank[0].labels_B.tolist() for of_rank in batches[SAMPLES:]] == [[PADDING_LABEL], [PADDING_LABEL]]
    assert Counter(of_rank[0].keys[0] for of_rank in batches[:SAMPLES]) == Counter(sample.key for sample in source.samples)


# --- damage ------------------------------------------------------------------------------------------------


def load_until_error(batches: Iterable[Batch]) -> tuple[list[Batch], str]:
    """Load batches until a DataError is raised. Returns the batches before it, and its text."""
    delivered: list[Batch] = []

    def take() -> None:
        delivered.extend(batches)

    with pytest.raises(DataError) as caught:
        take()
    assert caught.type is DataError
    assert "Traceback" not in str(caught.value)
    assert "\n" not in str(caught.value)
    return delivered, str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_undecodable_image_is_named_when_its_batch_is_due(source: MemorySource, folder: Path, workers: int) -> None:
    shards = open_dataset(folder)
    overwrite_image(shards, source[7].key)
    children_before = multiprocessing.active_children()
    delivered, text = load_until_error(train_batches(config(workers), shards, sampler(), 0, 2 * STEPS_PER_EPOCH))
    sample = keys_of(shards).index(source[7].key)
    assert f"sample {source[7].key} in {path_of(shards, sample)}" in text
    assert f"remove {shards.location} and prepare it again" in text
    micro_batches = sampler().iterate_steps(0, 2 * STEPS_PER_EPOCH)
    due = next(number for number, micro_batch in enumerate(micro_batches) if sample in [index for _, index in micro_batch])
    assert due > 0
    assert len(delivered) == due
    assert multiprocessing.active_children() == children_before


def test_an_undecodable_image_is_named_in_evaluation(source: MemorySource, folder: Path) -> None:
    shards = open_dataset(folder)
    overwrite_image(shards, source[7].key, start=300)
    _, text = load_until_error(evaluation_batches(config(), shards, batch=4, rank=0, world_size=1))
    assert f"sample {source[7].key} in {shards.location}/shard-" in text


@pytest.mark.parametrize("damage", [lambda path: os.truncate(path, 1000), lambda path: os.truncate(path, 0)])
def test_a_shard_that_is_damaged_after_opening_is_named(folder: Path, damage: Callable[[Path], None]) -> None:
    shards = open_dataset(folder)
    damaged = folder / "shard-000002.tar"
    damage(damaged)
    delivered, text = load_until_error(evaluation_batches(config(), shards, batch=1, rank=0, world_size=1))
    assert str(damaged) in text
    assert "the shard ends after" in text
    assert len(delivered) >= 10  # the two shards before it hold ten samples


def test_a_shard_that_is_truncated_while_it_is_read_is_named(folder: Path) -> None:
    batches = evaluation_batches(config(), open_dataset(folder), batch=1, rank=0, world_size=1)
    next(batches)
    os.truncate(folder / "shard-000000.tar", 1000)
    _, text = load_until_error(batches)
    assert str(folder / "shard-000000.tar") in text
    assert "the shard ends after" in text


# --- processes ---------------------------------------------------------------------------------------------


def test_closing_the_batches_ends_the_worker_processes(shards: DataSet) -> None:
    before = {child.pid for child in multiprocessing.active_children()}
    with closing(train_batches(config(workers=2), shards, sampler(), 0, 1000)) as batches:
        next(batches)
        workers = [psutil.Process(child.pid) for child in multiprocessing.active_children() if child.pid not in before]
        assert len(workers) == 2
        assert all(worker.is_running() for worker in workers)
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert alive == []


def test_batches_that_were_never_asked_for_start_no_process(shards: DataSet) -> None:
    before = multiprocessing.active_children()
    train_batches(config(workers=2), shards, sampler(), 0, 1000).close()
    assert multiprocessing.active_children() == before
