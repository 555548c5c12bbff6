"""Tests that mixup and cutmix are timm's, and that their draws depend on the key alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from timm.data import Mixup
from torch import nn

from data_pipelines.config import AugmentConfig
from data_pipelines.loading.mixup import SeededMixup
from data_pipelines.loading.rng import fork_rng, seed_rng
from tdformer.config import RunConfig

CLASSES = 5


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3, 4, 0])


def mixed(augment: AugmentConfig, *key: int) -> tuple[torch.Tensor, torch.Tensor]:
    return SeededMixup(augment, CLASSES)(*batch(), *key)


@pytest.mark.parametrize("augment", [AugmentConfig(mixup=0.8), AugmentConfig(cutmix=1.0), AugmentConfig(mixup=0.8, cutmix=1.0)])
def test_the_same_key_mixes_alike_and_another_key_otherwise(augment: AugmentConfig) -> None:
    images, labels = mixed(augment, 3, 7, 1)
    torch.rand(3), np.random.rand(3)
    again_images, again_labels = mixed(augment, 3, 7, 1)
    assert torch.equal(images, again_images)
    assert torch.equal(labels, again_labels)
    for other in ((3, 7, 2), (3, 8, 1), (4, 7, 1), (7, 3, 1)):
        assert not torch.equal(images, mixed(augment, *other)[0])


def test_it_is_timms_mixup_with_labels_as_probabilities() -> None:
    images, labels = mixed(AugmentConfig(mixup=0.8, cutmix=1.0), 1, 2, 3)
    with fork_rng():
        seed_rng(1, 2, 3)
        expected_images, expected_labels = Mixup(0.8, 1.0, label_smoothing=0.0, num_classes=CLASSES)(*batch())
    assert torch.equal(images, expected_images)
    assert torch.equal(labels, expected_labels)
    torch.testing.assert_close(labels.sum(1), torch.ones(6))


def test_mixing_leaves_the_generators_as_they_were() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    mixed(AugmentConfig(mixup=0.8), 1, 2, 3)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]


def test_the_loss_smooths_mixed_labels_as_timm_does() -> None:
    """Our loss smooths the labels, where timm's Mixup does it itself. The results must be equal."""
    logits_BK = torch.randn(6, CLASSES, generator=torch.Generator().manual_seed(1))
    _, labels_BK = mixed(AugmentConfig(mixup=0.8), 1, 2, 3)
    with fork_rng():
        seed_rng(1, 2, 3)
        _, smoothed_BK = Mixup(0.8, label_smoothing=0.1, num_classes=CLASSES)(*batch())
    ours = nn.CrossEntropyLoss(label_smoothing=0.1)(logits_BK, labels_BK)
    torch.testing.assert_close(ours, -(smoothed_BK * logits_BK.log_softmax(1)).sum(1).mean())


def test_nothing_is_mixed_with_probability_zero() -> None:
    images, labels = mixed(AugmentConfig(mixup=0.8, mix_probability=0.0), 1, 2, 3)
    assert torch.equal(images, batch()[0])
    assert torch.equal(labels, nn.functional.one_hot(batch()[1], CLASSES).float())


def test_the_share_of_cutmix_is_timms_switch() -> None:
    """Always or never: cutmix then, or mixup, as if only that one were on, but for one draw more."""
    images = batch()[0]
    for share, is_cut in ((1.0, True), (0.0, False)):
        results = [mixed(AugmentConfig(mixup=0.8, cutmix=1.0, cutmix_share=share), 1, 2, number)[0] for number in range(10)]
        kept = [bool((result == images).any()) for result in results if not torch.equal(result, images)]
        assert any(kept) if is_cut else not any(kept)


def test_mixing_ends_before_its_off_epoch() -> None:
    augment = AugmentConfig(mixup=0.8, mix_off_epoch=2)
    assert [augment.mixes_in(epoch) for epoch in range(4)] == [True, True, False, False]
    assert AugmentConfig(mixup=0.8).mixes_in(500)
    assert not AugmentConfig().mixes_in(0)


def test_pairs_need_an_even_micro_batch() -> None:
    tree = {"name": "x", "data": {"train": "a", "val": "b", "augment": {"mixup": 0.8}}, "training": {"global_batch": 9, "micro_batch": 3}}
    with pytest.raises(ValidationError, match="micro_batch must be even with mixup"):
        RunConfig.model_validate(tree)
