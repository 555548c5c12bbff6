"""Learning rate and parameter groups."""

from __future__ import annotations

import pytest

from tdformer.config import BackboneConfig, FeedbackConfig, ModelConfig, OptimizerConfig
from tdformer.models.tdformer import TDFormer
from tdformer.training.optim import learning_rate_at, parameter_groups


def test_learning_rate_warms_up_to_the_peak_and_falls_to_the_floor() -> None:
    rates = [learning_rate_at(step, peak=1.0, floor=0.1, warmup_steps=10, total_steps=110) for step in range(111)]
    assert rates[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert rates[10] == 1.0
    assert rates[60] == pytest.approx(0.55)  # half-way down the cosine
    assert rates[110] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_without_warm_up_the_first_step_has_the_peak() -> None:
    assert learning_rate_at(0, peak=2.0, floor=0.0, warmup_steps=0, total_steps=5) == 2.0


def test_vectors_are_not_decayed_and_nothing_is_left_out() -> None:
    backbone = BackboneConfig(embed_dims=32, num_heads=2, depths=(1, 1, 1))
    model = TDFormer(ModelConfig(backbone=backbone, feedback=FeedbackConfig()))
    decayed, plain = parameter_groups(model, OptimizerConfig(weight_decay=0.3))
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.3, 0.0)
    assert all(parameter.dim() > 1 for parameter in decayed["params"])
    assert all(parameter.dim() == 1 for parameter in plain["params"])
    assert len(decayed["params"]) + len(plain["params"]) == len(list(model.parameters()))
