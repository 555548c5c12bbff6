"""The part of the configuration that says how the network is trained: optimizer, batches, precision, memory."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from data_pipelines.config import Probability, Section
from data_pipelines.errors import UserError

Positive = Annotated[int, Field(ge=1, lt=2**63)]
Beta = Annotated[float, Field(ge=0, lt=1)]

RecomputePolicy = Literal["none", "segment", "block", "block_segment"]
Loss = Literal["cross_entropy", "bce", "tet"]
Precision = Literal["fp32", "bf16", "fp16"]
Kernels = Literal["auto", "fused", "plain"]
ResolvedReduction = Literal["exact", "fast"]
WantedReduction = Literal["auto", "exact", "fast"]


class OptimizerConfig(Section):
    """Describes the optimizer and its learning rate: linear warm-up, a cosine, and cool-down epochs at the lowest rate."""

    name: Literal["adamw", "lamb"] = "adamw"
    """adamw: torch's AdamW. lamb: LAMB, for large batches, which steps as timm's does. Its norms are those of whole weights at every ZeRO
    stage."""
    base_lr: Annotated[float, Field(gt=0)] = 6e-4
    """Peak learning rate for a global batch of base_batch. It is scaled linearly to the real global batch."""
    base_batch: Positive = 256
    """Global batch that base_lr is meant for."""
    schedule: Literal["step", "epoch"] = "step"
    """step: the rate changes with every optimizer step, and the cosine begins after the warm-up. epoch: it changes with every epoch, and
    the cosine begins with the run, as timm's CosineLRScheduler has it."""
    min_lr: Annotated[float, Field(ge=0)] = 1e-6
    """Learning rate at the end of the cosine and in the cool-down. It is not scaled."""
    warmup_epochs: Annotated[float, Field(ge=0)] = 5.0
    """Epochs of linear warm-up. A whole number with schedule: epoch."""
    warmup_lr: Annotated[float, Field(ge=0)] | None = None
    """Learning rate of the first step (or epoch) of the warm-up. It is not scaled. null: one step (or epoch) above zero [our choice]."""
    cooldown_epochs: Annotated[int, Field(ge=0)] = 0
    """Last epochs of training, which run at min_lr. training.epochs counts them: timm's 300 epochs and 10 are 310 and 10 here."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    """Weight decay of parameters with two or more dimensions. Biases and BatchNorm have none."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """Learning rate of a layer, as a multiple of that of the layer above it. null: one rate for all.

    The layers from the image up: stages 1 and 2 with their patch embeddings, the patch embedding of stage 3, each of its blocks, the
    head. Top-down modules learn at the full rate."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Decay of the optimizer's first and second moment."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Term that keeps the optimizer from dividing by zero."""

    @model_validator(mode="after")
    def _epochs_are_whole(self) -> OptimizerConfig:
        if self.schedule == "epoch" and self.warmup_epochs % 1:
            raise ValueError(f"warmup_epochs must be a whole number with schedule: epoch, got {self.warmup_epochs:g}")
        return self


class TrainingConfig(Section):
    """Describes training: how long, in which batches, at which precision, and what is kept in memory."""

    epochs: Positive = 200
    """Passes over the training set."""
    global_batch: Positive = 512
    """Samples per optimizer step over all ranks and accumulation steps."""
    micro_batch: Positive = 64
    """Samples per rank and forward pass. BatchNorm sees one micro-batch, so this number is part of the recipe."""
    eval_batch: Positive = 64
    """Samples per rank and forward pass in evaluation. It does not change the result."""
    reference: Annotated[str, Field(min_length=1)] | None = None
    """A training that this one is compared with after each evaluation: the name of a published curve (tdformer/reference_curves), a CSV
    file with the columns epoch and val_top1, or a run directory. null: none. It changes nothing that is computed."""
    loss: Loss = "cross_entropy"
    """cross_entropy: of the softmax over classes. bce: binary cross-entropy of each class against all others. tet: temporal efficient
    training, the cross-entropy of each time step's logits instead of their mean's."""
    bce_threshold: Annotated[float, Field(ge=0, lt=1)] | None = None
    """loss: bce makes targets above this number 1, and all others 0, so that each image that is mixed in counts as an answer. null: targets
    stay as mixup makes them."""
    tet_share: Probability | None = None
    """Share of loss: tet that is the squared distance of each logit from 1, the neurons' threshold; its authors have 0.001 to 0.1. The
    rest is the cross-entropy. null: 0."""
    label_smoothing: Probability = 0.1
    """Share of the target that is spread over all classes."""
    clip_grad: Annotated[float, Field(gt=0)] | None = None
    """Upper bound of the global gradient norm. null: no clipping."""
    on_non_finite: Literal["raise", "skip", "rewind"] = "raise"
    """Reaction to a loss or gradient that is not finite. raise: the run ends. skip: it goes on with the next global batch.
    rewind: it takes back the weights of the last checkpoint, and goes on with the next global batch.

    Such numbers never reach the weights, and the keys of their samples are written to RUN/non_finite/."""
    max_non_finite: Positive = 10
    """Largest number of global batches that a run may skip or rewind. It ends at the next one."""
    precision: Precision = "bf16"
    """bf16 and fp16 are autocast: parameters, BatchNorm statistics and membrane potentials stay fp32. fp16 comes with a loss scale. When
    a gradient overflows, it is halved and the global batch is passed over. After 2000 steps without an overflow it is doubled."""
    kernels: Kernels = "auto"
    """fused: BatchNorm and LIF neurons of all time steps are one kernel, and tensors are channels_last. plain: torch's and spikingjelly's
    own operations. auto: fused on a GPU, plain on a CPU.

    Fused kernels are compiled at the first step, which takes half a minute, and are then cached on the disk. Their results equal those
    of plain up to rounding. Where they cannot be compiled, the run says so and takes plain."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Decay of an exponential moving average (EMA) of weights and BatchNorm statistics. null: no average.

    It is updated after every optimizer step and evaluated as val/top1_ema. `best` then goes by that metric."""
    sync_batch_norm: bool = False
    """true: BatchNorm sees the micro-batches of all ranks as one. It needs CUDA. A run's results then depend on its number of ranks."""
    recompute: RecomputePolicy = "none"
    """Activation checkpointing: what is kept for the backward pass. The rest is computed again there, to the same bits.

    none: everything is kept. block_segment: each block's inputs and the neuron state at segment borders are kept, which takes about a
    tenth of the memory for a third more compute. segment: only the segment borders. block: only the blocks' inputs, which takes the
    least memory; the neuron state costs (segments - 1)/2 forward passes more."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 1
    """DeepSpeed ZeRO stage: what is sharded over the ranks. 0: nothing. 1: the optimizer state. 2: gradients too. 3: parameters too."""
    reduction: WantedReduction = "auto"
    """How gradients are summed over the ranks. exact: as whole numbers, to the same bits on any number of ranks and at any ZeRO stage.
    fast: by DeepSpeed, in float32 or as communication_dtype says; the bits then depend on the number of ranks. Both send while the backward
    pass goes on. auto: exact on one node, fast on several. A run keeps for its whole life what auto chose at its start."""
    communication_dtype: Literal["fp32", "bf16"] = "fp32"
    """Numbers in which reduction: fast sends and adds up gradients. bf16: half the bytes. Each gradient is rounded to 8 binary digits, and
    so is each partial sum."""
    deterministic: bool = False
    """true: a GPU runs only kernels that give the same bits each time, which may be slower; an operation that has none ends the run. With
    reduction: exact, the bits are then the same on any number of ranks of this kind of GPU. A CPU gives them in any case."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """State that DeepSpeed keeps in the machine's memory instead of the GPU's. optimizer: the optimizer state, which is stepped on the CPU
    (needs ZeRO 1 or more). all: parameters too (needs ZeRO 3)."""
    log_every: Positive = 50
    """Optimizer steps between two points of the training metrics."""

    @model_validator(mode="after")
    def _targets_make_sense(self) -> TrainingConfig:
        if self.bce_threshold is not None and self.loss != "bce":
            raise ValueError(f"bce_threshold is for loss: bce, got loss: {self.loss}")
        if self.tet_share is not None and self.loss != "tet":
            raise ValueError(f"tet_share is for loss: tet, got loss: {self.loss}")
        if self.bce_threshold is not None and self.label_smoothing:
            raise ValueError(
                f"bce_threshold makes every target 0 or 1, so that label_smoothing ({self.label_smoothing:g}) would do nothing; set it to 0"
            )
        return self

    @model_validator(mode="after")
    def _offload_fits(self) -> TrainingConfig:
        needed = {"none": 0, "optimizer": 1, "all": 3}[self.offload]
        if self.zero_stage < needed:
            raise ValueError(f"offload: {self.offload} needs zero_stage {needed} or more, got {self.zero_stage}")
        return self

    @model_validator(mode="after")
    def _reduction_sends_it(self) -> TrainingConfig:
        if self.communication_dtype != "fp32" and self.reduction != "fast":
            raise ValueError(
                f"communication_dtype: {self.communication_dtype} needs reduction: fast, got reduction: {self.reduction}; "
                f"exact sends gradients as fp32 or whole numbers"
            )
        return self

    def accumulation(self, world_size: int) -> int:
        """Return the number of micro-batches per rank and optimizer step. Raises UserError if that is no whole number."""
        steps, rest = divmod(self.global_batch, self.micro_batch * world_size)
        if rest or not steps:
            lower = self.micro_batch * world_size * max(steps, 1)
            pieces = self.global_batch / self.micro_batch
            fitting = [str(ranks) for ranks in range(1, min(int(pieces), 1024) + 1) if pieces % ranks == 0]
            instead = f"; it fits {', '.join(fitting)} rank{'s' if fitting[-1] != '1' else ''}" if fitting else ""
            raise UserError(
                f"training.global_batch must be a multiple of training.micro_batch x ranks, got {self.global_batch} with "
                f"{self.micro_batch} x {world_size} = {self.micro_batch * world_size}{instead}; for {world_size} ranks {lower} or "
                f"{lower + self.micro_batch * world_size} would fit, or {self._smaller_micro_batch(world_size)}"
            )
        return steps

    def _smaller_micro_batch(self, world_size: int) -> str:
        of_a_rank, rest = divmod(self.global_batch, world_size)
        fitting = [size for size in range(1, self.micro_batch) if of_a_rank and not rest and of_a_rank % size == 0]
        return f"training.micro_batch={fitting[-1]}" if fitting else "another number of ranks"
