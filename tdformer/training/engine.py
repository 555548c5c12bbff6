"""Engine: the network under DeepSpeed. No other file knows DeepSpeed's keys or insides.

An Engine takes optimizer steps. It gives its state as full tensors by parameter name, and takes it back in that form, which is the same for
every ZeRO stage and number of ranks.

DeepSpeed shards the state and steps the optimizer. The gradients come from GradientAccumulator: DeepSpeed finds zeros, so that its own
reduction in float32 does not matter, and gets the exact means just before the step.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from tdformer.config import RunConfig
from tdformer.distributed.context import DistContext
from tdformer.training.ema import MovingAverage
from tdformer.training.gradient_accumulator import GradientAccumulator, full_shape
from tdformer.training.model_with_loss import ModelWithLoss
from tdformer.training.optimizer import MOMENTS, make_optimizer, set_steps
from tdformer.training.sharded_tensors import Part, join

REDUCE_BUCKET = 4_000_000
"""Elements of DeepSpeed's buffer for reducing gradients. Its default would take 2 GB of every GPU, and here it reduces only zeros."""


class Engine:
    """Runs a ModelWithLoss under DeepSpeed.

    One optimizer step is: `micro_step` for each of this rank's micro-batches, then `reduce`, which returns loss and gradient norm, then
    `optimizer_step` or `skip_step`.
    """

    def __init__(self, model_with_loss: ModelWithLoss, config: RunConfig, context: DistContext) -> None:
        deepspeed = _import_deepspeed()
        self.context, self.zero_stage = context, config.training.zero_stage
        self.clip_grad = config.training.clip_grad
        self.accumulation = config.training.accumulation(context.world_size)
        with _keeping_torch_linear():
            self._engine, self._optimizer, *_ = deepspeed.initialize(
                model=model_with_loss,
                optimizer=make_optimizer(model_with_loss.model, config.optimizer),
                config=deepspeed_config(config, context.world_size),
                dist_init_required=False,
            )
        self._utils = deepspeed.utils
        self._gathered_parameters = deepspeed.zero.GatheredParameters
        self._make_optimizer_state()
        self._switch_off_reduction()
        self.accumulator = GradientAccumulator(
            [parameter for _, parameter in self._trained_parameters()], list(model_with_loss.buffers()), context
        )
        decay = config.training.ema_decay
        self._average = MovingAverage(self._averaged_tensors(), decay) if decay is not None else None

    @property
    def model_with_loss(self) -> ModelWithLoss:
        return self._engine.module

    def logits(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Return logits [segments, B, classes] of images [B, C, H, W]. Under ZeRO 3 all ranks must call it together."""
        return self._engine(images_BCHW)

    # --- one optimizer step ----------------------------------------------------------------------------------

    def micro_step(self, images_BCHW: torch.Tensor, labels: torch.Tensor, loss_scale: float = 1.0) -> torch.Tensor:
        """Run one micro-batch forward and backward. Return its loss, a scalar, the mean over its samples."""
        with self.accumulator.micro_batch():
            loss = self._engine(images_BCHW, labels)
            self._engine.backward(loss * loss_scale)
        self.accumulator.add_loss(loss)
        return loss.detach()

    def reduce(self, loss_scale: float = 1.0) -> tuple[float, float]:
        """Return loss and gradient norm (before clipping) of the global batch, the same on all ranks. Collective.

        loss_scale: the one that its micro-steps had. It is taken out of the gradients here.
        """
        self.accumulator.reduce(self.accumulation * self.context.world_size, loss_scale)
        return self.accumulator.loss_and_norm()

    def optimizer_step(self, learning_rate: float, gradient_norm: float) -> None:
        """Step the optimizer with the gradients that `reduce` has made. gradient_norm: the one that it returned."""
        if self.clip_grad is not None:
            self.accumulator.clip(self.clip_grad, gradient_norm)
        for (_, parameter), gradient in zip(self._trained_parameters(), self.accumulator.gradients, strict=True):
            self._set_gradient(parameter, gradient.float())
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate * group["lr_scale"]
        self._engine.step()
        self.accumulator.keep_statistics()
        if self._average:
            self._average.update()
        self.accumulator.clear()

    def skip_step(self) -> None:
        """Drop the gradients and statistics of the global batch, so that nothing changes."""
        with self._resting_optimizer():
            self._engine.step()
        self.accumulator.clear()

    def _set_gradient(self, parameter: torch.nn.Parameter, full: torch.Tensor) -> None:
        if self.zero_stage == 3:
            self._utils.safe_set_local_grad(parameter, self._own_part(parameter, full))
        else:
            self._utils.safe_set_full_grad(parameter, full)

    @contextmanager
    def _resting_optimizer(self) -> Iterator[None]:
        """Keep DeepSpeed's step from changing parameters and moments inside. It still clears gradients and counts."""
        self._stepping.step = _no_step  # type: ignore[method-assign,assignment]
        try:
            yield
        finally:
            del self._stepping.step

    def _switch_off_reduction(self) -> None:
        """Switch off DeepSpeed's own reduction, which would add up zeros. ZeRO 3 keeps it, because it also partitions gradients there."""
        if self.zero_stage == 0:
            self._engine.enable_backward_allreduce = False
        elif self.zero_stage in (1, 2):
            self._optimizer.average_tensor = lambda tensor, communication_data_type: None

    # --- the moving average ----------------------------------------------------------------------------------

    @property
    def has_average(self) -> bool:
        return self._average is not None

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Give the network its averaged weights and statistics inside. Collective."""
        self._exchange_average()
        try:
            yield
        finally:
            self._exchange_average()

    def average_state(self) -> dict[str, torch.Tensor]:
        """Return the averages in the form of model_state. Collective."""
        with self.averaged():
            return self.model_state()

    def load_average(self, full: dict[str, torch.Tensor]) -> None:
        """Load what average_state returned, from any ZeRO stage and number of ranks."""
        assert self._average
        is_sharded = self.zero_stage == 3
        parts = [self._own_part(parameter, full[name]) if is_sharded else full[name] for name, parameter in self._trained_parameters()]
        self._average.set(parts + [full[name] for name, _ in self.model_with_loss.model.named_buffers()])

    def _averaged_tensors(self) -> list[torch.Tensor]:
        """Return the tensors that this rank averages: whole parameters, or at ZeRO 3 its parts of them, and buffers."""
        parameters = [parameter for _, parameter in self._trained_parameters()]
        own = [parameter.ds_tensor for parameter in parameters] if self.zero_stage == 3 else parameters  # type: ignore[attr-defined]
        return [*own, *self.model_with_loss.model.buffers()]

    def _exchange_average(self) -> None:
        assert self._average
        self._average.exchange()
        if self.zero_stage == 3:  # forget gathered parameters, and gather anew those that stay so
            self._optimizer.parameter_offload.partition_all_parameters()
            if persistent := self._optimizer.persistent_parameters:
                persistent[0].all_gather(persistent)

    # --- state as full tensors -------------------------------------------------------------------------------

    def model_state(self) -> dict[str, torch.Tensor]:
        """Return every parameter and buffer in full, on the CPU, by its name in the TDFormer. Collective; complete on rank 0 only."""
        buffers = {name: buffer.to("cpu", copy=True) for name, buffer in self.model_with_loss.model.named_buffers()}
        return self._parameters() | buffers

    def _parameters(self) -> dict[str, torch.Tensor]:
        full = {}
        for name, parameter in self.model_with_loss.model.named_parameters():
            with self._gathered_parameters([parameter], enabled=self.zero_stage == 3):
                if self.context.is_rank0:
                    full[name] = parameter.detach().to("cpu", copy=True)
        return full

    def optimizer_state(self) -> dict[str, torch.Tensor]:
        """Return the moments in full, fp32 on the CPU, by `<moment>.<parameter name>`. Collective; complete on rank 0 only."""
        named = [(f"{moment}.{name}", parameter, moment) for name, parameter in self._trained_parameters() for moment in MOMENTS]
        if self.zero_stage:
            return join([self._part_of_moment(*one) for one in named], self.context)
        if not self.context.is_rank0:
            return {}
        return {name: self._optimizer.state[parameter][moment].to("cpu", copy=True) for name, parameter, moment in named}

    def load_optimizer_state(self, full: dict[str, torch.Tensor], updates: int) -> None:
        """Load what optimizer_state returned, from any ZeRO stage and number of ranks. updates: optimizer steps taken so far."""
        set_steps(self._stepping, self._partitions(), updates)
        for name, parameter in self._trained_parameters():
            for moment in MOMENTS:
                self._set_moment(parameter, moment, full[f"{moment}.{name}"])

    def _trained_parameters(self) -> Iterable[tuple[str, torch.nn.Parameter]]:
        return ((name, parameter) for name, parameter in self.model_with_loss.model.named_parameters() if parameter.requires_grad)

    def _partitions(self) -> list[torch.Tensor]:
        """Return the tensors that this rank's optimizer steps: the parameters themselves, or its flat fp32 partitions of them."""
        if self.zero_stage == 0:
            return [parameter for _, parameter in self._trained_parameters()]
        if self.zero_stage == 3:
            return list(self._optimizer.fp32_partitioned_groups_flat)
        return list(self._optimizer.single_partition_of_fp32_groups)

    @property
    def _stepping(self) -> torch.optim.Optimizer:
        return self._optimizer if self.zero_stage == 0 else self._optimizer.optimizer

    def _make_optimizer_state(self) -> None:
        """Make the moments, all zeros, now instead of in the first step.

        A resume needs a place to load into. Besides, DeepSpeed 0.19 links moments to parameters only once, after the step of the first
        parameter group, when the other groups have none yet.
        """
        for partition in self._partitions():
            self._stepping.state[partition] = {moment: torch.zeros_like(partition) for moment in MOMENTS}
        set_steps(self._stepping, self._partitions(), 0)
        if self.zero_stage in (1, 2):
            self._optimizer._lazy_init_hp_params_optimizer_state()

    def kept_between_steps(self) -> list[torch.Tensor]:
        """Return what this rank keeps between two optimizer steps besides the network: moments, and sums of the global batch."""
        moments = [self._stepping.state[partition][moment] for partition in self._partitions() for moment in MOMENTS]
        return [*moments, self.accumulator.sums]

    def _part_of_moment(self, name: str, parameter: torch.nn.Parameter, moment: str) -> Part:
        """Return this rank's part of a moment at ZeRO 1 to 3. DeepSpeed's own function needs a collective for each tensor."""
        shape = full_shape(parameter)
        if self.zero_stage == 3:
            own = self._utils.safe_get_local_optimizer_state(parameter, moment).flatten()
            return Part(name, shape, min(self.context.rank * own.numel(), shape.numel()), own)
        if (fragment := parameter._hp_mapping) is None:  # type: ignore[attr-defined]  # put there by ZeRO 1 and 2
            return Part(name, shape, 0, torch.empty(0))
        return Part(name, shape, fragment.lp_fragment_address.start, fragment.get_hp_fragment(moment))

    def _set_moment(self, parameter: torch.nn.Parameter, moment: str, full: torch.Tensor) -> None:
        full = full.to(self.context.device)
        if self.zero_stage == 0:
            self._optimizer.state[parameter][moment].copy_(full)
        elif self.zero_stage == 3:
            self._utils.safe_set_local_optimizer_state(parameter, self._own_part(parameter, full), moment)
        else:
            self._utils.safe_set_full_optimizer_state(parameter, full, moment)

    def _own_part(self, parameter: torch.nn.Parameter, full: torch.Tensor) -> torch.Tensor:
        """Return the part that ZeRO 3 keeps on this rank of a tensor of the parameter's shape.

        DeepSpeed's own function fails where the part needs padding.
        """
        length = parameter.ds_tensor.numel()  # type: ignore[attr-defined]  # put there by ZeRO 3
        padded = torch.nn.functional.pad(full.flatten(), (0, length * self.context.world_size - full.numel()))
        return padded[self.context.rank * length :][:length]


def deepspeed_config(config: RunConfig, world_size: int) -> dict[str, Any]:
    """Return DeepSpeed's configuration of a run. Its scheduler, checkpoints and monitors are not used."""
    training = config.training
    return {
        # GradientAccumulator accumulates and clips. DeepSpeed's ways round differently at each stage, and it clips by default.
        "train_batch_size": training.micro_batch * world_size,
        "train_micro_batch_size_per_gpu": training.micro_batch,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "zero_optimization": {
            "stage": training.zero_stage,
            "reduce_bucket_size": REDUCE_BUCKET,
            **_offload(training.offload),
            # GradientAccumulator has the norm. DeepSpeed's takes a collective, for which the host waits. Other stages have no such key.
            **({"compute_grad_norm": False} if training.zero_stage in (1, 2) and training.offload == "none" else {}),
        },
        "zero_force_ds_cpu_optimizer": False,  # torch's needs no compiler
        # ModelWithLoss decides the precision. DeepSpeed's "bf16" also rounds BatchNorm's running statistics, which fails on a CPU
        # and loses accuracy anywhere. Its "torch_autocast" scales the losses of fp16 by itself.
        "steps_per_print": None,
    }


def _offload(what: str) -> dict[str, Any]:
    sections = {"none": [], "optimizer": ["offload_optimizer"], "all": ["offload_optimizer", "offload_param"]}[what]
    return {section: {"device": "cpu"} for section in sections}


@contextmanager
def _keeping_torch_linear() -> Iterator[None]:
    """Undo at the end that ZeRO 3 replaces torch's linear function by its own, whose gradients are rounded differently."""
    linear = torch.nn.functional.linear
    yield
    torch.nn.functional.linear = linear


def _no_step(closure: object = None) -> None:
    """Stand in for an optimizer's step, and do nothing."""


def _import_deepspeed() -> Any:
    """Import DeepSpeed without its log lines, and without the C++ that it would compile at the first start."""
    os.environ.setdefault("DS_LOG_LEVEL", "error")
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    # A CPU kernel for inference that training never calls; building it would need a compiler on every node.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
