"""One run, as a typed tree. Every component gets its own section of it, never the whole.

Imports no torch: a login node can read and check a configuration.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from data_pipelines.config import DataConfig, Probability, Section
from data_pipelines.errors import UserError

Positive = Annotated[int, Field(ge=1, lt=2**63)]
Size = Annotated[int, Field(ge=1, le=2**16)]
"""Of a network's dimensions: a slip of the pen is told before it is allocated."""
Depth = Annotated[int, Field(ge=1, le=126)]
"""Blocks of a stage. Each adds two spikes to a sum that recompute keeps in a byte."""
Bound = Annotated[float, Field(ge=-1e6, le=1e6)]
Beta = Annotated[float, Field(ge=0, lt=1)]


RecomputePolicy = Literal["none", "segment", "block", "block_segment"]
Precision = Literal["fp32", "bf16", "fp16"]
Kernels = Literal["auto", "fused", "plain"]
Family = Literal["qkformer", "spikformer", "sdt"]
Variant = Literal["imagenet", "cifar", "dvs"]

POOLS: dict[Variant, tuple[bool, bool, bool, bool]] = {
    "imagenet": (True, True, True, True),
    "cifar": (False, False, True, True),
    "dvs": (False, True, True, True),
}
"""Which of the four entry convolutions of Spikformer and SDT are pooled, as in the public code and configurations."""


class BackboneConfig(Section):
    """The network under the top-down path, as its public code has it.

    qkformer: QKFormer, "HST-L-D", over three stages (two for dvs). spikformer: Spikformer. sdt: Spike-driven Transformer V1.
    """

    family: Family = "qkformer"
    variant: Variant = "imagenet"
    """Which of the public code's networks: they differ in where they pool, and in details."""
    embed_dims: Size = 768
    """D, the channels of the last stage."""
    num_heads: Size = 12
    """Attention heads, the same number in every stage."""
    depths: tuple[Depth, ...] = (1, 2, 7)
    """Blocks per stage; L in the published names is their sum. One number for spikformer and sdt."""
    mlp_ratio: Annotated[int, Field(ge=1, le=64)] = 4
    in_channels: Size = 3
    """Of the images; 2 for event frames of two polarities."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability of dropping a residual branch in the last block; it grows linearly over the blocks."""
    samples_share_projection: bool = False
    """true: as the public QKFormer code, whose attention projection neurons keep their membrane from one sample of
    the batch to the next; what its published checkpoints were trained with. A result then depends on its batch."""

    @model_validator(mode="after")
    def _sizes_divide(self) -> BackboneConfig:
        if self.family == "spikformer" and self.variant == "dvs":
            raise ValueError("spikformer has the variants imagenet and cifar, not dvs")
        stages = (2 if self.variant == "dvs" else 3) if self.family == "qkformer" else 1
        if len(self.depths) != stages:
            raise ValueError(
                f"depths must be {stages} number(s), the blocks per stage of a {self.family} ({self.variant}), got {list(self.depths)}"
            )
        if self.samples_share_projection and self.family != "qkformer":
            raise ValueError(f"samples_share_projection is a trait of qkformer's public code, got family {self.family}")
        part = {"imagenet": 8, "cifar": 8, "dvs": 16}[self.variant] if stages > 1 else 8
        if self.embed_dims % part:
            raise ValueError(f"embed_dims must be a multiple of {part} (the first conv has D/{part} channels), got {self.embed_dims}")
        narrowest = self.embed_dims // 2 ** (stages - 1)
        if narrowest % self.num_heads:
            raise ValueError(
                f"the narrowest stage must be a multiple of num_heads, got {self.embed_dims}/{2 ** (stages - 1)} = {narrowest} "
                f"and {self.num_heads} heads"
            )
        return self

    @property
    def pools(self) -> tuple[bool, bool, bool, bool]:
        """Of spikformer and sdt."""
        return POOLS[self.variant]

    @property
    def stride(self) -> int:
        """Image height and width must be multiples of it."""
        if self.family == "qkformer":
            return 4 if self.variant == "cifar" else 16
        return 2 ** sum(self.pools)


class FeedbackConfig(Section):
    """The top-down path (paper sections 4.1 and 4.2)."""

    blocks: Literal["all"] | tuple[Annotated[int, Field(ge=0)], ...] = "all"
    """Which blocks of the last stage have a control module, counted from 0."""
    control: Literal["cm1", "cm2", "cm3"] = "cm1"
    """Where the top-down spikes enter: cm1 = the keys, so that they steer the attention map; cm2 = the values; cm3 = the
    attention's input."""
    processing: Literal["v1", "v2", "v3", "v4"] = "v1"
    """How they are made, by channel mixer and neuron: v1 = 1x1 and LIF, v2 = 3x3 and LIF, v3 = 3x3 and parametric LIF,
    v4 = 1x1 and parametric LIF."""
    clamp: tuple[Bound, Bound] = (0.0, 2.0)
    """(b, a): bounds of the spatial map."""
    init_std: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Standard deviation of the new top-down weights at the start; 0 starts exactly at the backbone's function."""

    @model_validator(mode="after")
    def _makes_sense(self) -> FeedbackConfig:
        if self.blocks != "all" and (not self.blocks or len(set(self.blocks)) < len(self.blocks)):
            raise ValueError(f"blocks must name at least one block, and each once, got {list(self.blocks)} (no feedback is feedback: null)")
        if self.clamp[0] >= self.clamp[1]:
            raise ValueError(f"clamp must be (lower, upper) with lower < upper, got {self.clamp}")
        return self


class ModelConfig(Section):
    """The network: a backbone, unrolled over time steps, and the top-down path over its segments."""

    backbone: BackboneConfig = BackboneConfig()
    num_classes: Annotated[int, Field(ge=1, le=2**24)] = 1000
    time_steps: Size = 4
    segments: Size = 2
    """Sub-networks into which the time steps are cut; each but the first is controlled by the one before it."""
    carry_membrane: bool = True
    """Membrane potentials go on from one segment to the next; false resets them."""
    feedback: FeedbackConfig | None = FeedbackConfig()
    """null: the plain backbone."""
    batch_norm_momentum: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Weight of an optimizer step (the mean over its micro-batches, on all ranks) in BatchNorm's running statistics. Spikes flip at
    thresholds, so that noisy statistics cost accuracy: where batches are small, a smaller weight evaluates better (0.6 to 0.9 points
    on the demo). It also needs more steps before they mean anything: about 3 / weight of them, 150 for 0.02; before that,
    evaluation looks like chance."""
    loss_weights: tuple[Annotated[float, Field(ge=0)], ...] | None = None
    """alpha_n of the segments' losses, summing to 1; null: proportional to n, and (0.3, 0.7) for two segments."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> ModelConfig:
        if self.time_steps % self.segments:
            raise ValueError(f"time_steps must be a multiple of segments, got {self.time_steps} time steps and {self.segments} segments")
        blocks, depth = self.feedback.blocks if self.feedback else (), self.backbone.depths[-1]
        if blocks != "all" and any(block >= depth for block in blocks):
            raise ValueError(f"feedback.blocks must lie within 0 to {depth - 1} (the last stage has {depth} blocks), got {list(blocks)}")
        weights = self.loss_weights
        if weights is not None and (len(weights) != self.segments or abs(sum(weights) - 1) > 1e-6):
            raise ValueError(f"loss_weights must be {self.segments} numbers (one per segment) that sum to 1, got {list(weights)}")
        return self

    def segment_loss_weights(self) -> tuple[float, ...]:
        """alpha_n. Values are our choice: the paper gives none, only that they sum to 1 and that the last is the largest."""
        if self.loss_weights is not None:
            return self.loss_weights
        if self.segments == 2:
            return (0.3, 0.7)
        total = self.segments * (self.segments + 1) / 2
        return tuple(n / total for n in range(1, self.segments + 1))


class OptimizerConfig(Section):
    """AdamW or LAMB with a cosine schedule, stepped per optimizer step."""

    name: Literal["adamw", "lamb"] = "adamw"
    """lamb is timm's, for large batches. It scales each weight's step by the norm of that weight, whole: ZeRO stage 0 only."""
    base_lr: Annotated[float, Field(gt=0)] = 6e-4
    """Peak learning rate for a global batch of base_batch; the real one is scaled linearly with the global batch."""
    base_batch: Positive = 256
    min_lr: Annotated[float, Field(ge=0)] = 1e-6
    """Where the cosine ends, unscaled."""
    warmup_epochs: Annotated[float, Field(ge=0)] = 5.0
    """Epochs of linear warm-up from zero."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    """On weights of two or more dimensions; biases and BatchNorm are not decayed."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """The learning rate of a layer is this times that of the layer above it; null: one rate for all. From the image: stages 1 and 2
    with their patch embeddings, the patch embedding of stage 3, each of its blocks, the head. Top-down modules learn at the full rate."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0)] = 1e-8


class TrainingConfig(Section):
    """How long, in which pieces, at which precision."""

    epochs: Positive = 200
    global_batch: Positive = 512
    """Samples per optimizer step over all ranks and accumulation steps."""
    micro_batch: Positive = 64
    """Samples per rank and forward pass. BatchNorm sees one micro-batch, so this is part of the recipe."""
    eval_batch: Positive = 64
    """Samples per rank and forward pass in evaluation; does not change its result."""
    label_smoothing: Probability = 0.1
    clip_grad: Annotated[float, Field(gt=0)] | None = None
    """Upper bound of the global gradient norm; null: no clipping."""
    on_non_finite: Literal["raise", "skip", "rewind"] = "raise"
    """What a loss or gradient that is not finite does to the run. It never reaches the weights, and the keys of the samples are
    written to non_finite/. raise: end it. skip: go on with the next global batch. rewind: so too, with the weights of the
    last checkpoint, since those that a bad number came from may be spoilt already."""
    max_non_finite: Positive = 10
    """Above so many skipped or rewound global batches the run ends."""
    precision: Precision = "bf16"
    """bf16 and fp16 are autocast: parameters, BatchNorm statistics and membranes stay fp32. fp16 comes with a loss scale that is
    halved, and the global batch passed over, when a gradient overflows, and doubled after 2000 steps without."""
    kernels: Kernels = "auto"
    """fused: BatchNorm and LIF neurons of all time steps as one kernel, and tensors in channels_last; compiled at the first step (half a
    minute, then cached on the disk). The results are those of plain up to rounding. Where it cannot be compiled, the run says so and
    takes plain. auto: fused on a GPU."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Of an exponential moving average of weights and BatchNorm statistics, taken after every optimizer step and evaluated as
    val/top1_ema; `best` then goes by that. null: none."""
    sync_batch_norm: bool = False
    """BatchNorm sees the micro-batches of all ranks as one. On CUDA only; what a run computes then depends on its number of ranks."""
    recompute: RecomputePolicy = "none"
    """What is kept for the backward pass; the rest is computed again there, to the same bits. none: everything. block_segment:
    each block's inputs and the membranes at segment borders: about a tenth of the memory for a third more compute. segment: the
    borders alone. block: the inputs alone, least of all; membranes cost (segments - 1)/2 forward passes more."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 1
    """DeepSpeed ZeRO: what is sharded over the ranks (0 nothing, 1 optimizer state, 2 gradients too, 3 parameters too)."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """What DeepSpeed keeps in the memory of the machine instead of the GPU's: optimizer = the optimizer state, which is stepped on the
    CPU (from ZeRO 1 up); all = parameters too (ZeRO 3)."""
    log_every: Positive = 50
    """Optimizer steps between two points of the training metrics."""

    @model_validator(mode="after")
    def _offload_fits(self) -> TrainingConfig:
        needed = {"none": 0, "optimizer": 1, "all": 3}[self.offload]
        if self.zero_stage < needed:
            raise ValueError(f"offload: {self.offload} needs zero_stage {needed} or more, got {self.zero_stage}")
        return self

    def accumulation(self, world_size: int) -> int:
        """Micro-batches per rank and optimizer step, for a number of ranks. Raises UserError if it is no whole number."""
        steps, rest = divmod(self.global_batch, self.micro_batch * world_size)
        if rest or not steps:
            lower = self.micro_batch * world_size * max(steps, 1)
            pieces = self.global_batch / self.micro_batch
            fitting = [str(ranks) for ranks in range(1, min(int(pieces), 1024) + 1) if pieces % ranks == 0]
            instead = f"; it fits {', '.join(fitting)} ranks" if fitting else ""
            raise UserError(
                f"training.global_batch must be a multiple of training.micro_batch x ranks, got {self.global_batch} with "
                f"{self.micro_batch} x {world_size} = {self.micro_batch * world_size}{instead}; for {world_size} ranks {lower} or "
                f"{lower + self.micro_batch * world_size} would fit, or another micro_batch"
            )
        return steps


class CheckpointConfig(Section):
    """When the training state is saved. It is also saved at the end of every epoch and when the run is told to stop."""

    every_steps: Positive | None = None
    """Additional saves within an epoch, in optimizer steps."""
    every_minutes: Annotated[float, Field(gt=0)] | None = 30.0
    """Additional saves when so many minutes have passed since the last one."""
    keep_last: Positive = 2
    """Older ones are removed; the best one by validation top-1 stays as well."""
    keep_every: Positive | None = None
    """Checkpoints whose step is a multiple of it stay too."""
    background: bool = True
    """Written by a thread while training goes on; false: training waits."""
    on_failure: Literal["go_on", "stop"] = "go_on"
    """What a disk that does not take a checkpoint does to the run. At the end of a run, or when it is told to stop, it is an error."""


class TrackingConfig(Section):
    """MLflow, written by rank 0."""

    uri: str = "sqlite:///runs/mlflow.db"
    """Any MLflow tracking URI; sqlite needs no server."""
    experiment: str = "tdformer"
    system_metrics: bool = True
    """CPU, memory and GPU use of rank 0's node, every ten seconds."""
    log_model: Literal["none", "best", "latest"] = "none"
    """The checkpoint whose network (as `tdformer checkpoint export` writes it; averaged weights if there are any) a finished run gives
    to MLflow as the artifact `model`."""
    register_as: Annotated[str, Field(pattern=r"^[^/:]+$", max_length=200)] | None = None
    """Name in MLflow's model registry under which it is registered, with its validation metrics."""

    @field_validator("uri")
    @classmethod
    def _uri_is_fit_to_be_read(cls, uri: str) -> str:
        if not uri.strip():
            raise ValueError("must name a tracking URI, such as sqlite:///runs/mlflow.db")
        if uri.startswith(("http://", "https://")) and "@" in uri.partition("://")[2].partition("/")[0]:
            raise ValueError(
                "must hold no user and password, which would be written into run directories: set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD"
            )
        return uri

    @model_validator(mode="after")
    def _model_is_logged(self) -> TrackingConfig:
        if self.register_as and self.log_model == "none":
            raise ValueError("register_as needs log_model: best or latest, which says what is registered")
        return self


class PreemptionConfig(Section):
    """When a run is told to stop. It then finishes the step, saves, and exits with code 75: the same command goes on."""

    signals: tuple[Literal["SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2"], ...] = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2")
    """That mean it. The others keep their usual effect."""
    max_minutes: Annotated[float, Field(gt=0)] | None = None
    """So many minutes after the start of a process; null: no such deadline."""
    minutes_before_end: Annotated[float, Field(gt=0)] | None = 5.0
    """So many minutes before the end of a Slurm job (or at half of its time, if that is later); null: not for that reason."""


class WatchdogConfig(Section):
    """When a rank that gives no sign of life is named, stack traces are written to stacks/, and the run is ended on all ranks.

    A rank that dies ends it at once.
    """

    timeout_s: Annotated[float, Field(ge=1)] | None = 600.0
    """Seconds for one step, or one batch of an evaluation; null: for ever."""
    slow_timeout_s: Annotated[float, Field(ge=1)] | None = 1800.0
    """Seconds while starting and saving; null: for ever."""


class ProfilingConfig(Section):
    """What is measured of a run besides its usual metrics. Changes nothing that is computed."""

    trace_steps: tuple[Positive, Positive] | None = None
    """First and last optimizer step of a profiler trace of rank 0, written to traces/ of the run directory."""
    peak_tflops: Annotated[float, Field(gt=0)] | None = None
    """Of one device at the run's precision, for MFU; null: from a table of known GPUs, and no MFU elsewhere."""

    @model_validator(mode="after")
    def _steps_are_in_order(self) -> ProfilingConfig:
        if self.trace_steps is not None and self.trace_steps[0] > self.trace_steps[1]:
            raise ValueError(f"trace_steps must be [first, last] with first <= last, got {list(self.trace_steps)}")
        return self


class RunConfig(Section):
    """Everything that defines a run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)]
    """Prefix of the run directories and of the run's name in MLflow."""
    output: Path = Path("runs")
    """Where run directories are made."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Of the initial weights, the sample order, augmentation and drop path."""
    init: Path | None = None
    """Weights to start from: a folder written by `tdformer checkpoint import` or `export`; or a run directory (its latest checkpoint)
    or a checkpoint, at any image size, whose plain weights are taken (`export --ema` gives averaged ones). Top-down weights that it
    lacks, and a head that it lacks, start fresh. Read once, when the run begins."""
    data: DataConfig
    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: TrackingConfig = TrackingConfig()
    profiling: ProfilingConfig = ProfilingConfig()
    preemption: PreemptionConfig = PreemptionConfig()
    watchdog: WatchdogConfig = WatchdogConfig()

    @model_validator(mode="after")
    def _sections_fit(self) -> RunConfig:
        stride = self.model.backbone.stride
        if self.data.image_size % stride:
            raise ValueError(f"data.image_size must be a multiple of {stride} (the backbone's stride), got {self.data.image_size}")
        if self.model.backbone.in_channels not in (2, 3):
            raise ValueError(f"model.backbone.in_channels must be 3 (RGB images) or 2 (events), got {self.model.backbone.in_channels}")
        tokens = (self.data.image_size // stride) ** 2 * self.model.time_steps // self.model.segments
        if tokens * self.training.micro_batch < 2:
            raise ValueError("BatchNorm needs more than one value per channel: raise training.micro_batch or data.image_size")
        if self.data.augment.mixes and self.training.micro_batch % 2:
            raise ValueError(
                f"training.micro_batch must be even with mixup or cutmix, which pair its images, got {self.training.micro_batch}"
            )
        if self.optimizer.name == "lamb" and self.training.zero_stage:
            raise ValueError(f"LAMB needs whole parameters: training.zero_stage must be 0, got {self.training.zero_stage}")
        self.training.accumulation(world_size=1)
        return self

    def learning_rate(self) -> float:
        """Peak learning rate after scaling."""
        return self.optimizer.base_lr * self.training.global_batch / self.optimizer.base_batch
