"""Makes the networks that `bench step` compares, and a training step of each: forward pass, loss, backward pass, AdamW.

All candidates get the same images, precision and optimizer.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn

from data_pipelines.config import DataConfig
from data_pipelines.errors import UserError
from tdformer.bench.op_categories import optimizer_range
from tdformer.bench.reference import REFERENCE, make_reference
from tdformer.config import FeedbackConfig, Kernels, ModelConfig, Precision, RecomputePolicy, RunConfig, TrainingConfig
from tdformer.config.training import ResolvedReduction
from tdformer.config.yaml_io import checked
from tdformer.distributed.context import DistContext
from tdformer.models.autocast import autocast
from tdformer.training.engine import Engine
from tdformer.training.kernel_choice import choose_kernels
from tdformer.training.model_with_loss import ModelWithLoss

UNDER_ENGINE: dict[str, ResolvedReduction] = {"tdformer-engine": "exact", "tdformer-engine-fast": "fast"}
"""Candidates that run as under `tdformer train`, by DeepSpeed, and their training.reduction."""
CANDIDATES = ("backbone", "tdformer", REFERENCE, "tdformer-recompute", *UNDER_ENGINE)
"""tdformer-recompute runs under the recompute policy block_segment. What is not UNDER_ENGINE is trained by a plain loop."""


def network(embed_dims: int, image_size: int, time_steps: int, segments: int) -> ModelConfig:
    """Return the configuration of HST-10 with this many channels and with feedback in all blocks of its last stage.

    Raises UserError if the sizes do not fit together.
    """
    if embed_dims % 64:
        raise UserError(f"--embed-dims must be a multiple of 64, as heads have 64 channels, got {embed_dims}")
    if image_size % 16:
        raise UserError(f"--image-size must be a multiple of 16, the network's stride, got {image_size}")
    backbone = {"embed_dims": embed_dims, "num_heads": embed_dims // 64, "depths": (1, 2, 7)}
    return checked(ModelConfig, {"backbone": backbone, "time_steps": time_steps, "segments": segments}, "no such network")


@dataclass(frozen=True)
class Setting:
    """The conditions that all candidates share."""

    model: ModelConfig
    """The network of the candidate `tdformer`. The other candidates have the same backbone."""
    image_size: int
    precision: Precision
    kernels: Kernels
    context: DistContext

    @property
    def device(self) -> torch.device:
        return self.context.device


@dataclass
class Candidate:
    """One network with its training step, and the times that were measured."""

    name: str
    network: nn.Module
    step: Callable[[int], object]
    """A function that trains one step on this number of images."""
    state: Callable[[], list[torch.Tensor]]
    """A function that returns the tensors that stay in memory between two steps."""
    batch: int = 0
    seconds: list[float] = field(default_factory=list)
    """Seconds per step, one value for each round."""


def make_candidate(name: str, setting: Setting) -> Candidate:
    """Make one of CANDIDATES, with the same random weights at each call."""
    torch.manual_seed(0)
    if name == REFERENCE:
        network = make_reference(setting.model, setting.model.time_steps).to(setting.device)
        return _plain_loop(name, network, partial(_reference_loss, network, setting), setting)
    feedback, segments = (None, 1) if name == "backbone" else (setting.model.feedback or FeedbackConfig(), setting.model.segments)
    model = setting.model.model_copy(update={"feedback": feedback, "segments": segments, "loss_weights": None})
    policy: RecomputePolicy = "block_segment" if name == "tdformer-recompute" else "none"
    model_with_loss = ModelWithLoss(model, label_smoothing=0.0, recompute=policy, precision=setting.precision).to(setting.device)
    for note in choose_kernels(model_with_loss.model, setting.kernels, setting.context):
        print(f"{name}: {note}", file=sys.stderr)
    if name in UNDER_ENGINE:
        return _under_engine(name, model_with_loss, model, setting)
    return _plain_loop(name, model_with_loss, model_with_loss, setting)


def _plain_loop(name: str, network: nn.Module, loss: Callable[..., torch.Tensor], setting: Setting) -> Candidate:
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-6, fused=True)
    batches = _Batches(setting)

    def step(batch: int) -> None:
        loss(*batches.of(batch)).backward()
        with optimizer_range():
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def state() -> list[torch.Tensor]:
        moments = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
        return [*network.parameters(), *network.buffers(), *moments]

    return Candidate(name, network, step, state)


def _reference_loss(network: nn.Module, setting: Setting, images_BCHW: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
    from spikingjelly.activation_based.functional import reset_net

    reset_net(network)
    with autocast(setting.device, setting.precision):
        logits_BK = network(images_BCHW)
    return nn.functional.cross_entropy(logits_BK.float(), labels_B)


def _under_engine(name: str, model_with_loss: ModelWithLoss, model: ModelConfig, setting: Setting) -> Candidate:
    training = TrainingConfig(global_batch=2, micro_batch=2, precision=setting.precision, kernels=setting.kernels, label_smoothing=0.0)
    config = RunConfig(name=name, data=DataConfig(train="none", val="none", image_size=setting.image_size), model=model, training=training)
    engine, batches = Engine(model_with_loss, config, setting.context, UNDER_ENGINE[name]), _Batches(setting)

    def step(batch: int) -> None:
        engine.micro_step(*batches.of(batch))
        engine.reduce()
        with optimizer_range():
            engine.optimizer_step(1e-6)

    def state() -> list[torch.Tensor]:
        return [*model_with_loss.parameters(), *model_with_loss.buffers(), *engine.kept_between_steps()]

    return Candidate(name, model_with_loss, step, state)


class _Batches:
    """Random images [B, C, H, W] and labels [B] on the device. The batch size alone decides about their values."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self._made: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def of(self, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        if batch not in self._made:
            self._made.clear()
            setting, generator = self.setting, torch.Generator().manual_seed(batch)
            shape = (batch, setting.model.backbone.in_channels, setting.image_size, setting.image_size)
            images_BCHW = torch.randn(shape, generator=generator)
            labels_B = torch.randint(setting.model.num_classes, (batch,), generator=generator)
            self._made[batch] = images_BCHW.to(setting.device), labels_B.to(setting.device)
        return self._made[batch]
