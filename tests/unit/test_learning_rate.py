"""The learning rate of each step: its shape, and equality with timm's scheduler and with the logs of published trainings."""

from __future__ import annotations

import pytest
import torch
from timm.scheduler.cosine_lr import CosineLRScheduler

from tdformer.config import OptimizerConfig
from tdformer.config.learning_rate import Schedule, schedule_of
from tdformer.config.yaml_io import load_config
from tdformer.reference_curves.curve import published_curve
from tests.conftest import REPOSITORY


def schedule(epochs: int = 11, steps_per_epoch: int = 10, peak: float = 1.0, **changes: object) -> Schedule:
    return Schedule(OptimizerConfig(**{"min_lr": 0.1, "warmup_epochs": 1, **changes}), peak, epochs, steps_per_epoch)  # type: ignore[arg-type]


def test_it_warms_up_to_the_peak_and_falls_to_the_floor() -> None:
    rates = [schedule().at(step) for step in range(111)]
    assert rates[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert rates[10] == 1.0
    assert rates[60] == pytest.approx(0.55)  # half-way down the cosine
    assert rates[110] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_without_warm_up_the_first_step_has_the_peak() -> None:
    assert schedule(warmup_epochs=0, peak=2.0).at(0) == 2.0


def test_a_warm_up_begins_where_it_is_told_to() -> None:
    rates = [schedule(warmup_lr=0.2).at(step) for step in range(11)]
    assert rates == pytest.approx([0.2 + 0.08 * step for step in range(11)])


def test_the_last_epochs_cool_down_at_the_floor() -> None:
    cooled, plain = schedule(epochs=13, cooldown_epochs=2), schedule(epochs=11)
    assert [cooled.at(step) for step in range(110)] == [plain.at(step) for step in range(110)]
    assert [cooled.at(step) for step in range(110, 130)] == [0.1] * 20


@pytest.mark.parametrize(("warmup", "cooldown"), [(0, 0), (3, 0), (3, 2), (20, 0)])
def test_by_epoch_it_is_timms_scheduler(warmup: int, cooldown: int) -> None:
    by_epoch = schedule(
        epochs=12 + cooldown, steps_per_epoch=4, schedule="epoch", warmup_epochs=warmup, warmup_lr=0.01, cooldown_epochs=cooldown
    )
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    theirs = CosineLRScheduler(optimizer, t_initial=12, lr_min=0.1, warmup_t=warmup, warmup_lr_init=0.01)
    for epoch in range(12 + cooldown):
        theirs.step(epoch)
        rate = optimizer.param_groups[0]["lr"]
        assert [by_epoch.at(step) for step in range(4 * epoch, 4 * epoch + 4)] == [pytest.approx(rate, rel=1e-12)] * 4


FOUR_DIGITS = {"rel": 5.01e-4}
"""The precision with which the logs of CIFAR print a learning rate."""
PUBLISHED = {
    # the name of the curve: its configuration, and how exact the log is
    "imagenet_qkformer_hst10_768_224": ("imagenet/qkformer_hst10_768_224", {"abs": 1e-6 * 1.35e-3}),
    "cifar10_qkformer_hst4_384": ("cifar10/qkformer_hst4_384", FOUR_DIGITS),
    "cifar100_qkformer_hst4_384": ("cifar100/qkformer_hst4_384", FOUR_DIGITS),
    "cifar10_dvs_qkformer_hst2_256": ("cifar10_dvs/qkformer_hst2_256", {"rel": 1e-9}),
}


def of_configuration(name: str) -> Schedule:
    config = load_config(REPOSITORY / "configs" / f"{name}.yaml")
    assert config.data.train_samples
    return schedule_of(config, config.data.train_samples // config.training.global_batch)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_epoch_has_the_rate_of_the_authors_log(name: str) -> None:
    source, tolerance = PUBLISHED[name]
    ours = of_configuration(source)
    logged = published_curve(name).column("train_lr")
    assert list(logged) == list(range(ours.epochs))
    for epoch, rate in enumerate(ours.means_by_epoch()):
        assert rate == pytest.approx(logged[epoch], **tolerance), epoch


def test_an_epoch_has_the_steps_of_the_authors_batch() -> None:
    """2224 steps per epoch with a batch of 576, 2502 with 512; 781 of CIFAR with 64."""
    steps = {"imagenet/qkformer_hst10_768_224": 2224, "imagenet/qkformer_hst10_512_224": 2502, "cifar10/qkformer_hst4_384": 781}
    assert {name: of_configuration(name).steps_per_epoch for name in steps} == steps
