"""Engine: the network under DeepSpeed.

An Engine takes optimizer steps. It gives its state as full tensors by parameter name, and takes it back in that form, which is the same for
every ZeRO stage and number of ranks. DeepSpeed shards the state and steps the optimizer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from tdformer.config import RunConfig
from tdformer.config.training import ResolvedReduction, TrainingConfig
from tdformer.distributed.context import DistContext
from tdformer.training.deepspeed_insides import DeepSpeedInsides, import_deepspeed, keeping_torch_linear
from tdformer.training.ema import MovingAverage
from tdformer.training.lamb import Lamb
from tdformer.training.model_with_loss import ModelWithLoss
from tdformer.training.optimizer import MOMENTS, make_optimizer, set_steps
from tdformer.training.parameter_gather import MOST_RANKS, ParameterGather
from tdformer.training.reduction.reduction import ExactReduction, FastReduction, Reduction, StepResult
from tdformer.training.sharded_tensors import join

SMALLEST_BUCKET, LARGEST_BUCKET = 250_000, 8_000_000
"""Elements of a buffer in which gradients are reduced [our choice]. DeepSpeed's default, 5e8, is larger than any TDFormer, so that nothing
would overlap, and takes 2 GB of every GPU."""
BUCKETS_PER_NETWORK = 8
"""Buffers that a network is cut into, within those limits [our choice]."""


class Engine:
    """Runs a ModelWithLoss under DeepSpeed.

    One optimizer step is: `micro_step` for each of this rank's micro-batches, then `reduce`, then `optimizer_step`.
    """

    def __init__(
        self, model_with_loss: ModelWithLoss, config: RunConfig, context: DistContext, reduction: ResolvedReduction = "exact"
    ) -> None:
        """reduction: exact or fast, as training.reduction was resolved."""
        deepspeed = import_deepspeed()
        self.context, self.zero_stage = context, config.training.zero_stage
        bucket = bucket_elements(sum(parameter.numel() for parameter in model_with_loss.parameters() if parameter.requires_grad))
        with keeping_torch_linear():
            engine, self._optimizer, *_ = deepspeed.initialize(
                model=model_with_loss,
                optimizer=make_optimizer(model_with_loss.model, config.optimizer),
                config=deepspeed_config(config, context.world_size, reduction, bucket),
                dist_init_required=False,
            )
        self._engine, self._insides = engine, DeepSpeedInsides(engine, self._optimizer, self.zero_stage, context)
        trained = [parameter for _, parameter in self._trained_parameters()]
        self._insides.make_optimizer_state(trained)
        if isinstance(lamb := self._insides.torch_optimizer, Lamb):
            lamb.shard(self._insides.shares(trained), len(trained), self._add_up if self.zero_stage else None)
        training, kind = config.training, ExactReduction if reduction == "exact" else FastReduction
        self._reduction: Reduction = kind(self._insides, trained, context, training, bucket)
        self._gather = self._overlapped_gather(bucket) if self.zero_stage in (1, 2) and 1 < context.world_size <= MOST_RANKS else None
        decay = training.ema_decay
        self._average_is_due = False
        self._average = MovingAverage(self._averaged_tensors(), decay) if decay is not None else None

    def close(self) -> None:
        """Free the network and the optimizer's state, as far as DeepSpeed lets go of them. Nothing else may be called afterwards."""
        if self._gather is not None:
            self._gather.close()
        self._reduction.close()
        self._engine.destroy()

    @property
    def model_with_loss(self) -> ModelWithLoss:
        return self._engine.module

    def logits(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Return logits [segments, B, classes] of images [B, C, H, W]. Under ZeRO 3 all ranks must call it together."""
        return self._engine(images_BCHW)

    # --- one optimizer step ----------------------------------------------------------------------------------

    def micro_step(self, images_BCHW: torch.Tensor, labels: torch.Tensor, loss_scale: float = 1.0) -> torch.Tensor:
        """Run one micro-batch forward and backward. Return its loss, a scalar, the mean over its samples.

        loss_scale: a power of two, the same in all micro-steps of an optimizer step. It is taken out of the gradients.
        """
        return self._reduction.micro_step(images_BCHW, labels, loss_scale)

    def reduce(self) -> None:
        """Make means over the global batch. Collective."""
        self._reduction.reduce()

    def optimizer_step(self, learning_rate: float) -> StepResult:
        """Step the optimizer. If loss or gradients are not finite, drop the global batch instead, so that nothing changes. Collective."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate * group["lr_scale"]
        self._bring_average_up_to_date()
        result = self._reduction.step()
        self._average_is_due = result.is_taken and self.has_average
        return result

    def _add_up(self, numbers: torch.Tensor) -> torch.Tensor:
        """Return the sum of numbers over the ranks. They may lie in the machine's memory, where NCCL does not add."""
        return self.context.all_reduce_sum(numbers.to(self.context.device)).to(numbers.device)

    # --- what goes on after a step ---------------------------------------------------------------------------

    def _overlapped_gather(self, bucket: int) -> ParameterGather:
        backbone = self.model_with_loss.model.backbone
        units = [*backbone.bottom_up()[1:], *backbone.transform()]
        gather = ParameterGather(self._insides.flats(), self.model_with_loss, units, self.context, bucket)
        self._insides.start_gather = gather.start
        return gather

    def wait_for_parameters(self) -> None:
        """Wait until all parameters that other ranks have stepped have arrived. A forward pass does that by itself."""
        if self._gather is not None:
            self._gather.wait()

    def _bring_average_up_to_date(self) -> None:
        """Update the moving average, if a step was taken since. It waits for all parameters, which a step need not do."""
        if self._average_is_due:
            assert self._average
            self.wait_for_parameters()
            self._average.update()
            self._average_is_due = False

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
        self._average_is_due = False
        own, is_sharded = self._insides.own_part, self.zero_stage == 3
        parts = [own(parameter, full[name]) if is_sharded else full[name] for name, parameter in self._trained_parameters()]
        self._average.set(parts + [full[name] for name, _ in self.model_with_loss.model.named_buffers()])

    def _averaged_tensors(self) -> list[torch.Tensor]:
        """Return the tensors that this rank averages: whole parameters, or at ZeRO 3 its parts of them, and buffers."""
        own = [self._insides.own_tensor(parameter) for _, parameter in self._trained_parameters()]
        return [*own, *self.model_with_loss.model.buffers()]

    def _exchange_average(self) -> None:
        assert self._average
        self._bring_average_up_to_date()
        self.wait_for_parameters()
        self._average.exchange()
        self._insides.forget_gathered()

    # --- state as full tensors -------------------------------------------------------------------------------

    def model_state(self) -> dict[str, torch.Tensor]:
        """Return every parameter and buffer in full, on the CPU, by its name in the TDFormer. Collective; complete on rank 0 only."""
        buffers = {name: buffer.to("cpu", copy=True) for name, buffer in self.model_with_loss.model.named_buffers()}
        return self._parameters() | buffers

    def _parameters(self) -> dict[str, torch.Tensor]:
        self.wait_for_parameters()
        full = {}
        for name, parameter in self.model_with_loss.model.named_parameters():
            with self._insides.gathered(parameter):
                if self.context.is_rank0:
                    full[name] = parameter.detach().to("cpu", copy=True)
        return full

    def optimizer_state(self) -> dict[str, torch.Tensor]:
        """Return the moments in full, fp32 on the CPU, by `<moment>.<parameter name>`. Collective; complete on rank 0 only."""
        named = [(f"{moment}.{name}", parameter, moment) for name, parameter in self._trained_parameters() for moment in MOMENTS]
        if self.zero_stage:
            return join([self._insides.part_of_moment(*one) for one in named], self.context)
        if not self.context.is_rank0:
            return {}
        return {name: self._insides.moment(parameter, moment).to("cpu", copy=True) for name, parameter, moment in named}

    def load_optimizer_state(self, full: dict[str, torch.Tensor], updates: int) -> None:
        """Load what optimizer_state returned, from any ZeRO stage and number of ranks. updates: optimizer steps taken so far."""
        set_steps(self._insides.torch_optimizer, self._partitions(), updates)
        for name, parameter in self._trained_parameters():
            for moment in MOMENTS:
                self._insides.set_moment(parameter, moment, full[f"{moment}.{name}"])

    def _trained_parameters(self) -> Iterable[tuple[str, torch.nn.Parameter]]:
        return ((name, parameter) for name, parameter in self.model_with_loss.model.named_parameters() if parameter.requires_grad)

    def _partitions(self) -> list[torch.Tensor]:
        return self._insides.partitions([parameter for _, parameter in self._trained_parameters()])

    def kept_between_steps(self) -> list[torch.Tensor]:
        """Return what this rank keeps between two optimizer steps besides the network: moments, and sums of the global batch."""
        moments = [self._insides.torch_optimizer.state[partition][moment] for partition in self._partitions() for moment in MOMENTS]
        return [*moments, *self._reduction.sums()]


def deepspeed_config(config: RunConfig, world_size: int, reduction: ResolvedReduction, bucket: int) -> dict[str, Any]:
    """Return DeepSpeed's configuration of a run. Its scheduler, checkpoints and monitors are not used.

    bucket: elements of a buffer for reducing gradients.
    """
    training, is_fast = config.training, reduction == "fast"
    # ExactReduction accumulates and clips. DeepSpeed's ways round differently at each stage, and it clips by default.
    accumulation = training.accumulation(world_size) if is_fast else 1
    return {
        "train_batch_size": training.micro_batch * world_size * accumulation,
        "train_micro_batch_size_per_gpu": training.micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": (training.clip_grad or 0.0) if is_fast and training.zero_stage else 0.0,
        "communication_data_type": training.communication_dtype,
        "zero_optimization": {
            "stage": training.zero_stage,
            "reduce_bucket_size": bucket,
            **_offload(training.offload),
            **(_of_fast(training.zero_stage) if is_fast else _of_exact(training)),
        },
        "zero_force_ds_cpu_optimizer": False,  # torch's needs no compiler
        "zero_allow_untested_optimizer": True,  # Lamb is this project's, and made for it
        # ModelWithLoss decides the precision. DeepSpeed's "bf16" also rounds BatchNorm's running statistics, which fails on a CPU
        # and loses accuracy anywhere. Its "torch_autocast" scales the losses of fp16 by itself.
        "steps_per_print": None,
    }


def _of_fast(zero_stage: int) -> dict[str, Any]:
    """Return the keys that let DeepSpeed reduce while the backward pass goes on, and send each gradient only to the rank that keeps it."""
    keys = {"overlap_comm": True, "contiguous_gradients": True, "reduce_scatter": True}
    return keys | ({"use_multi_rank_bucket_allreduce": False} if zero_stage in (1, 2) else {})


def _of_exact(training: TrainingConfig) -> dict[str, Any]:
    """Return the keys that keep DeepSpeed from making a norm, which takes a collective, for which the host waits."""
    return {"compute_grad_norm": False} if training.zero_stage in (1, 2) and training.offload == "none" else {}


def _offload(what: str) -> dict[str, Any]:
    sections = {"none": [], "optimizer": ["offload_optimizer"], "all": ["offload_optimizer", "offload_param"]}[what]
    return {section: {"device": "cpu"} for section in sections}


def bucket_elements(trained: int) -> int:
    """Return the elements of a buffer in which gradients are reduced. trained: elements of all trained parameters."""
    return min(max(trained // BUCKETS_PER_NETWORK, SMALLEST_BUCKET), LARGEST_BUCKET)
