"""How often the host waits for the device in training: scalars that are read, counted on the CPU, where reading them costs nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, get_args

import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from data_pipelines.loading.normalisation import Normalisation
from tdformer.config import RecomputePolicy, RunConfig
from tdformer.distributed.context import DistContext
from tdformer.models.checkpointing.activation_checkpointing import FRACTIONS
from tdformer.training.engine import Engine
from tdformer.training.gradient_accumulator import GradientAccumulator
from tdformer.training.model_with_loss import ModelWithLoss
from tests.unit.analysed import alone
from tests.unit.networks import images, lively, small


class ScalarsRead(TorchDispatchMode):
    """Counts the scalars that Python reads from tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def context() -> Iterator[DistContext]:
    with alone() as context:
        yield context


def test_the_counter_counts() -> None:
    with ScalarsRead() as read:
        float(torch.ones(1) * 2)
    assert read.count == 1


@pytest.mark.parametrize("policy", get_args(RecomputePolicy))
def test_micro_batches_are_computed_without_a_wait(policy: RecomputePolicy, context: DistContext) -> None:
    """Two micro-batches forward and backward, from raw pixels to summed gradients."""
    model_with_loss = ModelWithLoss(small(), 0.1, policy)
    lively(model_with_loss)
    accumulator = GradientAccumulator(list(model_with_loss.parameters()), list(model_with_loss.buffers()), context)
    pixels_BCHW, labels_B = (images(2) * 50 + 100).clamp(0, 255).to(torch.uint8), torch.tensor([0, 1])
    normalise = Normalisation((0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    with ScalarsRead() as read:
        for _ in range(2):
            with accumulator.micro_batch():
                loss = model_with_loss(normalise(pixels_BCHW), labels_B)
                loss.backward()
            accumulator.add_loss(loss)
        accumulator.reduce(2)
    assert read.count == 0
    loss, norm = accumulator.loss_and_norm()
    assert loss > 0
    assert norm > 0


def test_what_recompute_cannot_keep_makes_the_loss_nan_and_is_named_when_asked() -> None:
    model_with_loss = ModelWithLoss(small(), 0.0, "block")
    lively(model_with_loss)
    labels_B = torch.tensor([0, 1])
    hook = model_with_loss.model.backbone.transform()[0].mlp.register_forward_hook(lambda module, inputs, output: output * 0.3)
    loss = model_with_loss(images(2), labels_B)
    assert loss.isnan()
    hook.remove()
    assert not model_with_loss(images(2), labels_B).isnan()
    with pytest.raises(RuntimeError, match=FRACTIONS[:60]):
        model_with_loss.check_exact()
    model_with_loss.check_exact()


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [0, 1, 2])
def test_a_step_sends_its_sums_in_one_collective_and_deepspeed_adds_none(
    zero_stage: int, context: DistContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RunConfig.model_validate(
        {
            "name": "x",
            "data": {"train": "a", "val": "b", "image_size": 32},
            "model": small().model_dump(),
            "training": {"global_batch": 2, "micro_batch": 2, "precision": "fp32", "zero_stage": zero_stage},
        }
    )
    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1}.items():
        monkeypatch.setenv(name, str(value))
    engine = Engine(ModelWithLoss(config.model, 0.1), config, context)
    calls: Counter[str] = Counter()
    all_reduce = dist.all_reduce

    def counted(*arguments: Any, **options: Any) -> Any:
        calls["all_reduce"] += 1
        return all_reduce(*arguments, **options)

    monkeypatch.setattr(dist, "all_reduce", counted)
    for _ in range(2):
        calls.clear()
        engine.micro_step(images(2, 32, 32), torch.tensor([0, 1]))
        engine.reduce()
        engine.optimizer_step(0.1)
        assert calls == {"all_reduce": 1}
