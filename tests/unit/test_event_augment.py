"""Event sequences are augmented by one of six operations, all frames of a sample alike, by draws that depend on the sample alone."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from data_pipelines.config import AugmentConfig, DataConfig
from data_pipelines.errors import UserError
from data_pipelines.loading.event_augment import OPERATIONS, augment_events
from data_pipelines.loading.event_transform import EventTransform
from data_pipelines.loading.mixup import SeededMixup
from data_pipelines.loading.rng import fork_rng, seed_rng
from data_pipelines.loading.transforms import train_transform

SIDE = 32


def frames() -> torch.Tensor:
    """Four equal frames with a block of events in the middle."""
    one_CHW = torch.zeros(2, SIDE, SIDE)
    one_CHW[:, 10:22, 10:22] = torch.randint(1, 5, (2, 12, 12), generator=torch.Generator().manual_seed(0)).float()
    return one_CHW.expand(4, 2, SIDE, SIDE).clone()


def operation(name: str, share: float) -> torch.Tensor:
    with fork_rng():
        seed_rng(1)
        return OPERATIONS[name](frames(), share)


def centre(x_TCHW: torch.Tensor) -> tuple[float, float]:
    """Return the mean place of the events: (along x, along y)."""
    weights_HW = x_TCHW.sum((0, 1))
    places = torch.arange(SIDE, dtype=torch.float32)
    return float((weights_HW.sum(0) * places).sum() / weights_HW.sum()), float((weights_HW.sum(1) * places).sum() / weights_HW.sum())


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("share", [1.0, -1.0, 0.5])
def test_all_frames_change_alike_and_no_event_is_invented(name: str, share: float) -> None:
    changed = operation(name, share)
    assert (changed.shape, changed.dtype) == ((4, 2, SIDE, SIDE), torch.float32)
    assert all(torch.equal(frame, changed[0]) for frame in changed)
    assert set(changed.unique().tolist()) <= set(frames().unique().tolist())
    if name != "cut-out":  # which may lie where there are no events
        assert torch.equal(changed, frames()) is (name == "nothing")


def test_each_operation_does_what_its_name_says() -> None:
    x, y = centre(frames())
    assert centre(operation("shift along x", 1.0)) == pytest.approx((x + 5, y))
    assert centre(operation("shift along y", -1.0)) == pytest.approx((x, y - 5))
    assert centre(operation("rotation", 1.0)) == pytest.approx((x, y), abs=0.5)
    sheared, plain = operation("shear", 1.0), frames()
    assert torch.equal(sheared.sum((0, 1)).sum(1) > 0, plain.sum((0, 1)).sum(1) > 0), "a shear along x keeps each row in its place"
    first, last = (sheared[0, 0, row].nonzero().float().mean() for row in (10, 21))
    assert abs(float(last - first)) == pytest.approx(0.3 * 11, abs=1.0)
    full = torch.ones(4, 2, SIDE, SIDE)
    for seed in range(20):
        with fork_rng():
            seed_rng(seed)
            cut = OPERATIONS["cut-out"](full, 1.0)
        area = float((cut == 0).float().mean())
        assert 0 < area <= 0.12


def test_the_six_are_equally_likely_and_a_sample_gets_the_same_each_time() -> None:
    seen = Counter[int]()
    for sample in range(1200):
        with fork_rng():
            seed_rng(0, 0, sample)
            seen[int(torch.randint(6, ()))] += 1
    assert all(140 < count < 260 for count in seen.values())
    for sample in range(12):
        results = []
        for _ in range(2):
            torch.rand(3)
            with fork_rng():
                seed_rng(0, 0, sample)
                results.append(augment_events(frames()))
        assert torch.equal(*results)


def config(**augment: object) -> DataConfig:
    return DataConfig(train="a", val="b", image_size=SIDE, augment=AugmentConfig(**{"crop_scale": None, "flip": 0, **augment}))  # type: ignore[arg-type]


def test_evaluation_changes_nothing_and_training_only_what_is_asked_for() -> None:
    pixels = frames().numpy().astype(np.uint8)
    plain = [EventTransform(config(events=True), training=False), EventTransform(config(), training=True)]
    asked = EventTransform(config(events=True), training=True)
    changed = 0
    for sample in range(12):
        with fork_rng():
            seed_rng(0, 0, sample)
            assert all(torch.equal(transform(pixels), frames()) for transform in plain)
            changed += not torch.equal(asked(pixels), frames())
    assert changed > 6


def test_it_is_for_event_frames_alone() -> None:
    with pytest.raises(UserError, match=r"data\.augment\.events is for event frames, and these are images; use auto_augment"):
        train_transform(config(events=True, crop_scale=(0.08, 1.0)))
    with pytest.raises(UserError, match=r"data\.augment\.erase: event frames are augmented by flip, events, mixup and cutmix alone"):
        EventTransform(config(erase=0.5), training=True)


@pytest.mark.parametrize("augment", [AugmentConfig(mixup=0.5), AugmentConfig(cutmix=1.0)])
def test_event_sequences_are_mixed_as_images_are(augment: AugmentConfig) -> None:
    """All frames of a sample alike: each frame is what the frames of that time give as images."""
    generator = torch.Generator().manual_seed(0)
    frames_TBCHW, labels_B = torch.rand(3, 4, 2, 16, 16, generator=generator), torch.tensor([0, 1, 2, 0])
    mixed, labels = SeededMixup(augment, 3)(frames_TBCHW.clone(), labels_B, 1, 2, 3)
    assert mixed.shape == frames_TBCHW.shape
    assert not torch.equal(mixed, frames_TBCHW)
    for time in range(3):
        of_one, of_labels = SeededMixup(augment, 3)(frames_TBCHW[time].clone(), labels_B, 1, 2, 3)
        assert torch.equal(mixed[time], of_one)
        assert torch.equal(labels, of_labels)
