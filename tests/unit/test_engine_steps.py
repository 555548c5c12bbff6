"""Optimizer steps of an engine: how often the host waits for the device, and which steps are not taken.

What the host waits for are scalars that it reads. They are counted on the CPU, where reading them costs nothing.
"""

from __future__ import annotations

import gc
import math
import os
import traceback
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from data_pipelines.loading.normalisation import Normalisation
from tdformer.config import RecomputePolicy, RunConfig
from tdformer.config.training import ResolvedReduction
from tdformer.config.yaml_io import dump_config
from tdformer.distributed.context import DistContext
from tdformer.models.checkpointing.activation_checkpointing import FRACTIONS
from tdformer.rundir.run_dir import RunDir
from tdformer.training.engine import Engine
from tdformer.training.kernel_choice import use_deterministic_kernels
from tdformer.training.loop import train
from tdformer.training.model_with_loss import ModelWithLoss
from tdformer.training.reduction import exact_gradients
from tdformer.training.reduction.batch_statistics import BatchStatistics
from tdformer.training.reduction.exact_gradients import ExactGradients
from tdformer.training.reduction.reduction import NOT_FINITE, TOO_LARGE, StepResult, note_on_kernels
from tdformer.training.report import Report
from tdformer.training.trainer import Trainer
from tests.unit.analysed import alone
from tests.unit.networks import images, lively, small

ON_THE_HOST = {("optimizer.py", "_get_value"), ("reduction.py", "step")}
"""Who reads scalars that lie in the host's memory on a GPU machine, too: AdamW its count of steps, and FastReduction the loss, which was
sent there before the host has waited for the norm."""

BETWEEN = {"eval_frame.py", "_compile.py", "_python_dispatch.py"}
"""Files of torch that lie on the way from such a function to a dispatch mode."""


class ScalarsRead(TorchDispatchMode):
    """Counts the scalars that Python reads from tensors of the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            readers = [(Path(frame.filename).name, frame.name) for frame in traceback.extract_stack()[:-1]]
            self.count += next(reader for reader in reversed(readers) if reader[0] not in BETWEEN) not in ON_THE_HOST
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def context() -> Iterator[DistContext]:
    with alone() as context:
        yield context


@pytest.fixture
def make_engine(context: DistContext, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Engine]:
    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1}.items():
        monkeypatch.setenv(name, str(value))

    def make(zero_stage: int, reduction: ResolvedReduction, clip_grad: float | None = 1.0) -> Engine:
        training = {"global_batch": 4, "micro_batch": 2, "precision": "fp32", "zero_stage": zero_stage, "clip_grad": clip_grad}
        data = {"train": "a", "val": "b", "image_size": 32}
        config = RunConfig.model_validate({"name": "x", "data": data, "model": small().model_dump(), "training": training})
        return Engine(ModelWithLoss(config.model, 0.1), config, context, reduction)

    return make


def test_the_counter_counts() -> None:
    with ScalarsRead() as read:
        float(torch.ones(1) * 2)
    assert read.count == 1


@pytest.mark.parametrize("policy", get_args(RecomputePolicy))
def test_micro_batches_are_computed_without_a_wait(policy: RecomputePolicy, context: DistContext) -> None:
    """Two micro-batches forward and backward, from raw pixels to summed gradients."""
    model_with_loss = ModelWithLoss(small(), 0.1, policy)
    lively(model_with_loss)
    statistics = BatchStatistics(list(model_with_loss.buffers()), context, 2)
    trained = list(model_with_loss.parameters())
    gradients = ExactGradients(trained, context, 2, 10_000, [(0, parameter.numel()) for parameter in trained], sends_sums=False)
    pixels_BCHW, labels_B = (images(2) * 50 + 100).clamp(0, 255).to(torch.uint8), torch.tensor([0, 1])
    normalise = Normalisation((0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    with ScalarsRead() as read:
        for number in range(2):
            with statistics.micro_batch(), gradients.micro_batch(1.0, is_last=number == 1):
                loss = model_with_loss(normalise(pixels_BCHW), labels_B)
                loss.backward()
            statistics.add_loss(loss)
        statistics.reduce()
        means = gradients.finish()
    assert read.count == 0
    assert statistics.loss(statistics.result.tolist()) > 0
    assert means.any()


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


def take_step(engine: Engine) -> StepResult:
    for _ in range(2):
        engine.micro_step(images(2, 32, 32), torch.tensor([0, 1]))
    engine.reduce()
    result = engine.optimizer_step(0.1)
    assert result.is_taken
    return result


@pytest.mark.slow
@pytest.mark.parametrize(("zero_stage", "on_the_host"), [(0, 0), (1, 0), (2, 0), (3, 1)])
def test_an_exact_step_sends_its_numbers_in_one_collective_waits_once_and_deepspeed_adds_nothing(
    zero_stage: int, on_the_host: int, make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host reads loss and norm together, by tolist, which the counter does not see.

    on_the_host: at ZeRO 3 DeepSpeed reads the norm of zero that ExactReduction gives it, which no device has made.
    """
    engine, calls, all_reduce = make_engine(zero_stage, "exact"), Counter[str](), dist.all_reduce

    def counted(*arguments: Any, **options: Any) -> Any:
        calls["all_reduce"] += 1
        return all_reduce(*arguments, **options)

    monkeypatch.setattr(dist, "all_reduce", counted)
    for _ in range(2):
        calls.clear()
        with ScalarsRead() as read:
            take_step(engine)
        assert calls == {"all_reduce": 1}
    assert read.count == on_the_host


@pytest.mark.slow
@pytest.mark.parametrize(("zero_stage", "clip_grad"), [(0, 1.0), (1, None), (1, 1.0), (2, 1.0), (3, 1.0)])
def test_a_fast_step_waits_for_the_norm_alone(zero_stage: int, clip_grad: float | None, make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(zero_stage, "fast", clip_grad)
    take_step(engine)
    with ScalarsRead() as read:
        take_step(engine)
    assert read.count == 1


@pytest.mark.slow
def test_two_collectives_make_a_step_of_a_run(
    context: DistContext, run_config: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sums statistics and, of the exact reduction, the norm. The other agrees on whether to stop, to save, and who has batches."""
    run_config["checkpoint"]["every_steps"], run_config["training"]["log_every"] = None, 100
    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1}.items():
        monkeypatch.setenv(name, str(value))
    calls: list[str] = []
    for name in ("all_reduce", "all_gather_object", "broadcast_object_list", "gather_object", "barrier"):
        monkeypatch.setattr(dist, name, partial(noted, calls, name, getattr(dist, name)))
    step = Trainer.step

    def stepping(trainer: Trainer, report: Report) -> None:
        calls.append("step")
        step(trainer, report)

    monkeypatch.setattr(Trainer, "step", stepping)
    config, run_dir = RunConfig.model_validate(run_config), RunDir(tmp_path / "run")
    run_dir.path.mkdir()
    run_dir.config.write_text(dump_config(config))
    train(config, run_dir, context)
    first, second, third, *_ = (index for index, call in enumerate(calls) if call == "step")
    assert calls[second:third] == ["step", "all_reduce", "all_reduce"]
    assert calls[first:second] == ["step", "all_reduce", "all_reduce", "all_reduce"], "the first step asks for its own batches"


def noted(calls: list[str], name: str, function: Any, *arguments: Any, **options: Any) -> Any:
    calls.append(name)
    return function(*arguments, **options)


@pytest.mark.parametrize(
    ("reduction", "deterministic", "device_type", "notes"),
    [("exact", False, "cuda", 1), ("exact", True, "cuda", 0), ("fast", False, "cuda", 0), ("exact", False, "cpu", 0)],
)
def test_exact_sums_on_a_gpu_without_deterministic_kernels_are_noted(
    reduction: ResolvedReduction, deterministic: bool, device_type: str, notes: int
) -> None:
    found = note_on_kernels(reduction, deterministic, device_type)
    assert len(found) == notes
    assert all("training.deterministic=true" in note for note in found)


def test_deterministic_kernels_are_asked_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")  # what the user has set stays
    try:
        use_deterministic_kernels()
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
        with pytest.raises(RuntimeError, match="deterministic"):
            torch.ones(4).put_(torch.zeros(2, dtype=torch.int64), torch.ones(2))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reduction", "weight", "problem"),
    [
        ("exact", 1e6, TOO_LARGE),
        ("exact", math.nan, NOT_FINITE),
        ("fast", math.nan, NOT_FINITE),
        ("fast", 1e6, None),
        ("exact", 1.0, None),
    ],
)
def test_a_step_that_is_not_taken_says_why_and_changes_nothing(
    reduction: ResolvedReduction, weight: float, problem: str | None, make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large weight of the head makes large gradients below it. The limit is lowered, since other sums would overflow before it."""
    monkeypatch.setattr(exact_gradients, "largest_gradient", lambda micro_batches: 128.0)
    engine = make_engine(0, reduction)
    lively(engine.model_with_loss)
    with torch.no_grad():
        engine.model_with_loss.model.backbone.head.weight.fill_diagonal_(weight)
    before = engine.model_state() | engine.optimizer_state()
    for _ in range(2):
        engine.micro_step(images(2, 32, 32), torch.tensor([0, 1]))
    engine.reduce()
    result = engine.optimizer_step(0.1)
    assert result.is_taken == (problem is None)
    after = engine.model_state() | engine.optimizer_state()
    if problem:
        assert result.problem == problem
        changed = [name for name, tensor in before.items() if not torch.equal(tensor.nan_to_num(), after[name].nan_to_num())]
        assert changed == []
    else:
        assert any(not torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.mark.slow
@pytest.mark.parametrize("reduction", ["exact", "fast"])
def test_clipping_bounds_the_norm_and_leaves_smaller_ones_alone(reduction: ResolvedReduction, make_engine: Callable[..., Engine]) -> None:
    """The first moments of the first step are a tenth of the gradient that the optimizer got."""

    def norms(clip_grad: float | None) -> tuple[float, float]:
        torch.manual_seed(0)
        engine = make_engine(1, reduction, clip_grad)
        result = take_step(engine)
        moments = [tensor.flatten() for name, tensor in engine.optimizer_state().items() if name.startswith("exp_avg.")]
        return float(result.norm), 10 * float(torch.cat(moments).norm())

    norm, unclipped = norms(None)
    assert unclipped == pytest.approx(norm, rel=1e-5)
    assert norms(2 * norm) == (norm, unclipped)
    assert norms(norm / 4) == (norm, pytest.approx(norm / 4, rel=1e-5))


@pytest.mark.slow
def test_fast_keeps_no_statistics_that_cannot_be_added_up(make_engine: Callable[..., Engine]) -> None:
    """DeepSpeed takes the step, since the gradients are finite. The statistics stay as they were."""
    engine = make_engine(1, "fast")
    before = {name: buffer.clone() for name, buffer in engine.model_with_loss.named_buffers()}
    for _ in range(2):
        engine.micro_step(images(2, 32, 32) * 1e9, torch.tensor([0, 1]))
    engine.reduce()
    assert math.isnan(engine.optimizer_step(0.1).loss)
    assert all(torch.equal(buffer, before[name]) for name, buffer in engine.model_with_loss.named_buffers())


@pytest.mark.slow
def test_a_closed_engine_lets_go_of_its_sums(make_engine: Callable[..., Engine]) -> None:
    """A rewind makes another engine each time."""
    engine = make_engine(1, "exact")
    take_step(engine)
    sums = [weakref.ref(tensor) for tensor in engine.kept_between_steps()[-3:]]
    engine.close()
    del engine
    gc.collect()
    assert [reference() for reference in sums] == [None] * 3
