"""The trainers that `bench scaling` compares: this project's engine, plain DeepSpeed, torch's DDP, and a process that sends nothing."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from tdformer.bench.emulated_accelerator import EmulatedAccelerator
from tdformer.bench.scaling_names import ALONE
from tdformer.config import RunConfig
from tdformer.distributed.context import DistContext
from tdformer.training.deepspeed_insides import import_deepspeed, keeping_torch_linear
from tdformer.training.engine import Engine
from tdformer.training.model_with_loss import ModelWithLoss
from tdformer.training.optimizer import make_optimizer

LEARNING_RATE, LARGEST_NORM = 1e-6, 1.0


@dataclass(frozen=True)
class Candidate:
    """One of the trainers that are compared."""

    step: Callable[[torch.Tensor, torch.Tensor], None]
    """It takes images [B, C, H, W] and labels [B], and trains one step on them."""
    settle: Callable[[], None] = lambda: None
    """It waits for what a step leaves on its way."""


@dataclass(frozen=True)
class ScalingSetting:
    """What all candidates have in common."""

    config: RunConfig
    """The network, the image size, the precision and the micro-batch. One step is one micro-batch on each rank."""
    context: DistContext
    forward_s: float = 0.0
    """Seconds by which an emulated accelerator lengthens a forward pass. 0 in both: there is none."""
    backward_s: float = 0.0

    def at_stage(self, zero_stage: int) -> RunConfig:
        training = self.config.training
        changes = {"zero_stage": zero_stage, "clip_grad": LARGEST_NORM, "global_batch": training.micro_batch * self.context.world_size}
        return self.config.model_copy(update={"training": self.config.training.model_copy(update=changes)})

    def network(self) -> ModelWithLoss:
        """Make the network with its loss on the device, the same on every rank."""
        torch.manual_seed(0)
        model_with_loss = ModelWithLoss(self.config.model, 0.0, precision=self.config.training.precision).to(self.context.device)
        if self.forward_s or self.backward_s:
            EmulatedAccelerator(model_with_loss, self.forward_s, self.backward_s)
        return model_with_loss


def make_candidate(name: str, setting: ScalingSetting) -> Candidate:
    """Make a candidate by its name in CANDIDATES."""
    kind, _, stage = name.partition("-")
    if kind in (ALONE, "ddp"):
        return _plain(setting, is_alone=kind == ALONE)
    return _deepspeed(setting, int(stage)) if kind == "deepspeed" else _engine(setting, kind, int(stage))


def _engine(setting: ScalingSetting, reduction: str, zero_stage: int) -> Candidate:
    engine = Engine(setting.network(), setting.at_stage(zero_stage), setting.context, "exact" if reduction == "exact" else "fast")

    def step(images_BCHW: torch.Tensor, labels_B: torch.Tensor) -> None:
        engine.micro_step(images_BCHW, labels_B)
        engine.reduce()
        engine.optimizer_step(LEARNING_RATE)

    return Candidate(step, engine.wait_for_parameters)


def _plain(setting: ScalingSetting, is_alone: bool) -> Candidate:
    model_with_loss = setting.network()
    optimizer = make_optimizer(model_with_loss.model, setting.config.optimizer)
    for group in optimizer.param_groups:
        group["lr"] = LEARNING_RATE
    network: nn.Module = model_with_loss
    if not is_alone:
        with warnings.catch_warnings():  # the name that newer versions want is not known to torch 2.11
            warnings.simplefilter("ignore", FutureWarning)
            network = nn.parallel.DistributedDataParallel(model_with_loss, broadcast_buffers=False, gradient_as_bucket_view=True)

    def step(images_BCHW: torch.Tensor, labels_B: torch.Tensor) -> None:
        network(images_BCHW, labels_B).backward()
        nn.utils.clip_grad_norm_(network.parameters(), LARGEST_NORM)
        optimizer.step()
        optimizer.zero_grad()

    return Candidate(step)


def _deepspeed(setting: ScalingSetting, zero_stage: int) -> Candidate:
    config, model_with_loss = setting.at_stage(zero_stage), setting.network()
    training = config.training
    with keeping_torch_linear():
        engine, optimizer, *_ = import_deepspeed().initialize(
            model=model_with_loss,
            optimizer=make_optimizer(model_with_loss.model, config.optimizer),
            config={
                "train_batch_size": training.global_batch,
                "train_micro_batch_size_per_gpu": training.micro_batch,
                "gradient_clipping": LARGEST_NORM,
                "zero_optimization": {"stage": zero_stage, "overlap_comm": True, "contiguous_gradients": True, "reduce_scatter": True},
                "zero_force_ds_cpu_optimizer": False,
                "steps_per_print": None,
            },
            dist_init_required=False,
        )
    for group in optimizer.param_groups:
        group["lr"] = LEARNING_RATE

    def step(images_BCHW: torch.Tensor, labels_B: torch.Tensor) -> None:
        engine.backward(engine(images_BCHW, labels_B))
        engine.step()

    return Candidate(step)
