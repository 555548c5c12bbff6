"""Tests that the sample order is a function of seed and epoch, and that ranks only divide it among themselves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from data_pipelines.loading.sample_order import Shuffle, block_order, full_order
from data_pipelines.loading.sampler import NEXT_COPY, PADDING, DataCursor, TrainSampler, evaluation_samples

seeds = st.integers(0, 2**32 - 1)
epochs = st.integers(0, 500)


@dataclass(frozen=True)
class Layout:
    """How a data set is shuffled, and how each epoch is divided among ranks."""

    shuffle: Shuffle
    micro_batch: int
    accumulation: int
    world_size: int

    @property
    def samples(self) -> int:
        return self.shuffle.samples

    @property
    def global_batch(self) -> int:
        return self.micro_batch * self.accumulation * self.world_size

    @property
    def steps(self) -> int:
        return self.samples // self.global_batch

    def sampler(self, rank: int) -> TrainSampler:
        return TrainSampler(self.shuffle, self.global_batch, self.micro_batch, rank, self.world_size)

    def alone(self) -> TrainSampler:
        """The sampler of the same training in one process."""
        return TrainSampler(self.shuffle, self.global_batch, self.micro_batch)


@st.composite
def shuffles(draw: st.DrawFn, samples: int) -> Shuffle:
    """Draw a full or a block shuffle of `samples` samples. The last block may be smaller, as in a data set on disk."""
    size = draw(st.integers(1, max(samples, 1)))
    blocks = tuple(min(size, samples - start) for start in range(0, samples, size))
    return Shuffle(draw(seeds), blocks, draw(st.none() | st.integers(1, len(blocks) + 1)))


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    micro_batch, accumulation, world_size = (draw(st.integers(1, 4)) for _ in range(3))
    global_batch = micro_batch * accumulation * world_size
    samples = draw(st.integers(1, 4)) * global_batch + draw(st.integers(0, global_batch - 1))
    return Layout(draw(shuffles(samples)), micro_batch, accumulation, world_size)


def of_epoch(sampler: TrainSampler, epoch: int) -> list[list[tuple[int, int]]]:
    return list(sampler.iterate_steps(epoch * sampler.steps_per_epoch, (epoch + 1) * sampler.steps_per_epoch))


def flat(micro_batches: Iterable[list[tuple[int, int]]]) -> list[tuple[int, int]]:
    return [place for micro_batch in micro_batches for place in micro_batch]


@given(layouts(), epochs)
def test_an_epoch_visits_each_sample_once_over_all_ranks_but_for_the_dropped_rest(layout: Layout, epoch: int) -> None:
    visits = Counter(place for rank in range(layout.world_size) for place in flat(of_epoch(layout.sampler(rank), epoch)))
    assert set(visits.values()) == {1}
    assert {visited_epoch for visited_epoch, _ in visits} == {epoch}
    assert {sample for _, sample in visits} <= set(range(layout.samples))
    assert layout.samples - len(visits) == layout.samples % layout.global_batch


@given(layouts(), epochs)
def test_every_rank_takes_equally_many_micro_batches_of_equal_size(layout: Layout, epoch: int) -> None:
    for rank in range(layout.world_size):
        sampler = layout.sampler(rank)
        assert (sampler.steps_per_epoch, sampler.accumulation) == (layout.steps, layout.accumulation)
        sizes = [len(micro_batch) for micro_batch in of_epoch(sampler, epoch)]
        assert sizes == [layout.micro_batch] * (layout.steps * layout.accumulation)


@given(layouts(), epochs)
def test_micro_batches_of_a_global_batch_do_not_depend_on_the_world_size(layout: Layout, epoch: int) -> None:
    alone = of_epoch(layout.alone(), epoch)
    per_rank = [of_epoch(layout.sampler(rank), epoch) for rank in range(layout.world_size)]
    # zip groups the a-th micro-batches of all ranks. One process takes the same micro-batches one after the other.
    together = [micro_batch for side_by_side in zip(*per_rank, strict=True) for micro_batch in side_by_side]
    assert together == alone


@given(layouts(), epochs)
def test_steps_are_consecutive_runs_of_the_epochs_order(layout: Layout, epoch: int) -> None:
    visited = [sample for _, sample in flat(of_epoch(layout.alone(), epoch))]
    assert visited == layout.shuffle.order(epoch)[: layout.steps * layout.global_batch].tolist()


@given(layouts(), st.data())
def test_starting_later_gives_the_tail_of_the_whole(layout: Layout, data: st.DataObject) -> None:
    sampler = layout.sampler(data.draw(st.integers(0, layout.world_size - 1)))
    last = data.draw(st.integers(0, 3 * layout.steps))
    first = data.draw(st.integers(0, last))
    whole = list(sampler.iterate_steps(0, last))
    assert len(whole) == last * layout.accumulation
    assert list(sampler.iterate_steps(first, last)) == whole[first * layout.accumulation :]


@given(st.data(), st.integers(1, 300), epochs)
def test_an_epochs_order_is_a_permutation_and_the_same_every_time(data: st.DataObject, samples: int, epoch: int) -> None:
    shuffle = data.draw(shuffles(samples))
    order = shuffle.order(epoch)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(samples))
    assert np.array_equal(order, shuffle.order(epoch))


WINDOWS = [None, 1, 5, 20]


@pytest.mark.parametrize("window", WINDOWS)
@given(seeds, seeds, epochs, epochs)
def test_other_seeds_and_other_epochs_give_other_orders(
    window: int | None, seed: int, other_seed: int, epoch: int, other_epoch: int
) -> None:
    assume((seed, epoch) != (other_seed, other_epoch))
    # 1,000 samples have so many orders that two equal ones mean equal seeds of the generator.
    one, other = (Shuffle(of, (100,) * 10, window) for of in (seed, other_seed))
    assert not np.array_equal(one.order(epoch), other.order(other_epoch))


@pytest.mark.parametrize("window", WINDOWS)
def test_seed_and_epoch_do_not_stand_in_for_each_other(window: int | None) -> None:
    assert not np.array_equal(Shuffle(3, (100,) * 10, window).order(4), Shuffle(4, (100,) * 10, window).order(3))


def test_without_a_window_blocks_do_not_matter() -> None:
    orders = [Shuffle(3, blocks).order(4) for blocks in ((100,), (30, 30, 40), (1,) * 100)]
    assert all(np.array_equal(order, full_order(100, 3, 4)) for order in orders)


def test_with_a_window_the_order_is_by_blocks() -> None:
    assert np.array_equal(Shuffle(3, (4, 5, 6), 2).order(4), block_order((4, 5, 6), 2, 3, 4))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 14), seeds, epochs)
def test_each_window_takes_whole_blocks_and_each_block_is_in_one_window(blocks: list[int], window: int, seed: int, epoch: int) -> None:
    order = block_order(blocks, window, seed, epoch)
    assert sorted(order.tolist()) == list(range(sum(blocks)))
    block_at = np.repeat(np.arange(len(blocks)), blocks)[order].tolist()
    start = windows = 0
    while start < len(order):
        of_window = list(dict.fromkeys(block_at[start:]))[:window]
        end = start + sum(blocks[block] for block in of_window)
        assert set(block_at[start:end]) == set(of_window)
        start, windows = end, windows + 1
    assert windows == -(-len(blocks) // window)


def test_blocks_are_shuffled_and_samples_are_shuffled_over_their_window() -> None:
    block_at = block_order((100,) * 50, 5, 3, 4) // 100
    first_windows = [tuple(sorted(set(block_order((100,) * 50, 5, 3, epoch)[:500] // 100))) for epoch in range(10)]
    assert len(set(first_windows)) == 10
    neighbours_of_one_block = np.count_nonzero(block_at[1:] == block_at[:-1])
    assert 500 < neighbours_of_one_block < 1500  # chance makes a fifth of the neighbours share a block; unshuffled, nearly all would


@given(layouts(), st.integers(0, 50))
def test_the_cursor_before_a_step_is_what_was_consumed_of_its_epoch(layout: Layout, step: int) -> None:
    sampler = layout.alone()
    epoch, consumed = sampler.cursor(step)
    assert sampler.cursor(step) == DataCursor(step // layout.steps, step % layout.steps * layout.global_batch)
    of_step = flat(sampler.iterate_steps(step, step + 1))
    assert of_step == [(epoch, sample) for sample in layout.shuffle.order(epoch)[consumed : consumed + layout.global_batch].tolist()]


@given(layouts(), epochs, st.data())
def test_a_repeated_sample_is_in_one_global_batch_with_draws_of_its_own(layout: Layout, epoch: int, data: st.DataObject) -> None:
    """The samples are the first ones of the epoch's order, and ranks only divide the batch, as without repeats."""
    repeats = data.draw(st.sampled_from([n for n in range(1, layout.global_batch + 1) if layout.global_batch % n == 0]))
    alone, images = replace(layout.alone(), repeats=repeats), layout.global_batch // repeats
    order = layout.shuffle.order(epoch).tolist()
    steps = range(epoch * layout.steps, (epoch + 1) * layout.steps)
    for number, step in enumerate(steps):
        pairs = [pair for micro_batch in alone.iterate_steps(step, step + 1) for pair in micro_batch]
        assert len(set(pairs)) == len(pairs) == layout.global_batch
        assert Counter(sample for _, sample in pairs) == dict.fromkeys(order[number * images : (number + 1) * images], repeats)
        assert {draw % NEXT_COPY for draw, _ in pairs} == {epoch}
        ranks = [list(replace(layout.sampler(rank), repeats=repeats).iterate_steps(step, step + 1)) for rank in range(layout.world_size)]
        assert [micro_batch for turn in zip(*ranks, strict=True) for micro_batch in turn] == list(alone.iterate_steps(step, step + 1))
    assert alone.dropped_samples == layout.samples - layout.steps * images


def test_copies_are_in_different_micro_batches_where_there_are_enough() -> None:
    """BatchNorm then sees each image once, as in the public code, where copies go to other ranks."""
    sampler = TrainSampler(Shuffle(0, (100,)), global_batch=24, micro_batch=8, repeats=3)
    for micro_batch in sampler.iterate_steps(0, sampler.steps_per_epoch):
        assert len({sample for _, sample in micro_batch}) == 8


def test_each_epoch_drops_other_samples() -> None:
    sampler = TrainSampler(Shuffle(0, (103,)), global_batch=20, micro_batch=5)
    assert sampler.dropped_samples == 3
    dropped = [set(range(103)) - {sample for _, sample in flat(of_epoch(sampler, epoch))} for epoch in range(20)]
    assert {len(samples) for samples in dropped} == {3}
    assert len(set().union(*dropped)) > 20


@pytest.mark.parametrize("window", [None, 16])
def test_the_order_of_imagenet_takes_eight_bytes_per_sample(window: int | None) -> None:
    samples = 1_281_167
    order = Shuffle(0, (1000,) * 1281 + (167,), window).order(0)
    assert (order.dtype, order.shape, order.nbytes) == (np.int64, (samples,), 8 * samples)
    assert np.array_equal(np.bincount(order, minlength=samples), np.ones(samples))


@given(st.integers(1, 200), st.integers(1, 9))
def test_evaluation_covers_each_sample_once_with_equal_shares(samples: int, world_size: int) -> None:
    shares = [evaluation_samples(samples, rank, world_size).tolist() for rank in range(world_size)]
    assert {len(share) for share in shares} == {-(-samples // world_size)}
    slots = Counter(index for share in shares for index in share)
    assert slots.pop(PADDING, 0) == -samples % world_size
    assert slots == Counter(range(samples))


@given(st.integers(1, 200), st.integers(1, 9))
def test_evaluation_pads_at_most_the_last_slot_of_a_rank(samples: int, world_size: int) -> None:
    for rank in range(world_size):
        assert PADDING not in evaluation_samples(samples, rank, world_size)[:-1]
