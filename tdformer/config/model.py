"""The network's part of the configuration: backbone, top-down path, time steps."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from data_pipelines.config import Section

Size = Annotated[int, Field(ge=1, le=2**16)]
"""A dimension of a network. The bound refuses a typing error before memory is allocated for it."""
Depth = Annotated[int, Field(ge=1, le=126)]
"""Number of blocks of a stage. Each adds two spikes to a sum, which activation checkpointing keeps in one byte."""
Bound = Annotated[float, Field(ge=-1e6, le=1e6)]

Family = Literal["qkformer", "spikformer", "sdt"]
Variant = Literal["imagenet", "cifar", "dvs"]

VARIANTS: dict[Family, tuple[Variant, ...]] = {
    "qkformer": ("imagenet", "cifar", "dvs"),
    "spikformer": ("imagenet", "cifar"),
    "sdt": ("imagenet", "cifar"),
}
"""The networks of each family's public code that differ in their layers."""
POOLING: dict[Variant, str] = {"imagenet": "1111", "cifar": "0011"}
"""The pooling of Spikformer's and SDT's variants, as in the public code."""


class BackboneConfig(Section):
    """Describes the network under the top-down path, as its public code has it."""

    family: Family = "qkformer"
    """qkformer: QKFormer ("HST-L-D") of three stages, two for dvs. spikformer: Spikformer. sdt: Spike-driven Transformer V1."""
    variant: Variant = "imagenet"
    """The network of the public code, by the kind of data that it was made for. qkformer has all three, spikformer and sdt have imagenet
    and cifar. Those of sdt differ in their pooling alone."""
    pooling: Annotated[str, Field(pattern="^[01]{4}$")] | None = None
    """spikformer and sdt: 1 for each of the four entry convolutions that a max-pool follows, such as "0011". null: those of the variant.
    Each 1 halves height and width. Early ones make a network cheap. The published sdt for CIFAR10-DVS has "0011", the one for DVS128
    Gesture "0111"."""
    erode: bool = False
    """sdt: true max-pools keys, values and results of the attention over 3 x 3 neighbours, as the published network for CIFAR10-DVS does.
    It has no parameters: weights that were trained with it load without it, and compute something else."""
    embed_dims: Size = 768
    """D, the number of channels of the last stage."""
    num_heads: Size = 12
    """Number of attention heads, the same in every stage."""
    depths: tuple[Depth, ...] = (1, 2, 7)
    """Number of blocks of each stage. L in the published names is their sum. spikformer and sdt have one stage."""
    mlp_ratio: Annotated[int, Field(ge=1, le=64)] = 4
    """Hidden channels of a block's MLP, as a multiple of its channels."""
    in_channels: Size = 3
    """Number of input channels: 3 for RGB images, 2 for event frames of two polarities."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability of dropping a residual branch in the last block. It grows linearly over the blocks."""
    samples_share_projection: bool = False
    """true: the neurons of the attention's projection keep their membrane potential from one sample of a batch to the next, as in
    the public QKFormer code. Its published checkpoints were trained so. A result then depends on the batch around it."""

    @field_validator("pooling", mode="before")
    @classmethod
    def _is_in_quotes(cls, pooling: object) -> object:
        if isinstance(pooling, int):
            raise ValueError('pooling must stand in quotes, such as "0011", because YAML reads digits as a number')
        return pooling

    @model_validator(mode="after")
    def _sizes_divide(self) -> BackboneConfig:
        if self.variant not in VARIANTS[self.family]:
            events = "; the published ones for events have pooling and erode" if self.family == "sdt" else ""
            raise ValueError(f"{self.family} has the variants {' and '.join(VARIANTS[self.family])}, not {self.variant}{events}")
        if self.erode and self.family != "sdt":
            raise ValueError(f"erode is a trait of sdt's public code, got family {self.family}")
        if self.pooling and self.family == "qkformer":
            raise ValueError(f"pooling is for spikformer and sdt, got {self.pooling!r} for a qkformer, whose variant says where it pools")
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

    def without_tensors(self) -> dict[str, str | int | bool]:
        """Return the choices that no tensor shows. Weights of another choice load without an error, and compute something else."""
        if self.family == "qkformer":
            return {"num_heads": self.num_heads, "samples_share_projection": self.samples_share_projection}
        pooling = self.pooling or POOLING[self.variant]
        return {"num_heads": self.num_heads, "pooling": pooling, **({"erode": self.erode} if self.family == "sdt" else {})}

    @property
    def pools(self) -> tuple[bool, bool, bool, bool]:
        """Tell for each of the four entry convolutions of spikformer and sdt whether a max-pool follows it."""
        first, second, third, last = (digit == "1" for digit in self.pooling or POOLING[self.variant])
        return first, second, third, last

    @property
    def stride(self) -> int:
        """Return the number that image height and width must be multiples of."""
        if self.family == "qkformer":
            return 4 if self.variant == "cifar" else 16
        return 2 ** sum(self.pools)


class FeedbackConfig(Section):
    """Describes the top-down path [paper sections 4.1 and 4.2]."""

    blocks: Literal["all"] | tuple[Annotated[int, Field(ge=0)], ...] = "all"
    """Blocks of the last stage that have a control module, counted from 0."""
    control: Literal["cm1", "cm2", "cm3"] = "cm1"
    """Place at which the top-down spikes enter the attention. cm1: its keys, so that they steer the attention map. cm2: its values.
    cm3: its input."""
    processing: Literal["v1", "v2", "v3", "v4"] = "v1"
    """Channel mixer and neuron that make the top-down spikes. v1: 1x1 and LIF. v2: 3x3 and LIF. v3: 3x3 and parametric LIF.
    v4: 1x1 and parametric LIF."""
    clamp: tuple[Bound, Bound] = (0.0, 2.0)
    """Lower and upper bound of the spatial map, (b, a) in the paper."""
    init_std: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Standard deviation of the new top-down weights at the start. With 0 the network starts exactly as its backbone [our choice]."""

    @model_validator(mode="after")
    def _makes_sense(self) -> FeedbackConfig:
        if self.blocks != "all" and (not self.blocks or len(set(self.blocks)) < len(self.blocks)):
            raise ValueError(f"blocks must name at least one block, and each once, got {list(self.blocks)} (no feedback is feedback: null)")
        if self.clamp[0] >= self.clamp[1]:
            raise ValueError(f"clamp must be (lower, upper) with lower < upper, got {self.clamp}")
        return self


class ModelConfig(Section):
    """Describes the network: a backbone that runs over time steps, and the top-down path between its segments."""

    backbone: BackboneConfig = BackboneConfig()
    """The network under the top-down path."""
    num_classes: Annotated[int, Field(ge=1, le=2**24)] = 1000
    """Number of classes."""
    time_steps: Size = 4
    """T, the number of ticks of the LIF neurons for one sample."""
    segments: Size = 2
    """Number of segments that the time steps are cut into. Each but the first is controlled by the one before it."""
    carry_membrane: bool = True
    """true: membrane potentials go on from one segment to the next. false: each segment starts with potentials of zero."""
    feedback: FeedbackConfig | None = FeedbackConfig()
    """The top-down path. null: none, the network is the plain backbone."""
    batch_norm_momentum: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Weight of one optimizer step (the mean over its micro-batches, on all ranks) in BatchNorm's running statistics. Where a published
    recipe updates them by 0.1 with each of k accumulated micro-batches, the same is 1 - 0.9^k.

    Spikes flip at thresholds, so noisy statistics cost accuracy. Where batches are small, a smaller weight evaluates better (0.6 to
    0.9 points on the demo). The statistics then need more steps to settle, about 3 / weight: 150 steps for 0.02. Before that,
    evaluation looks like chance."""
    loss_weights: tuple[Annotated[float, Field(ge=0)], ...] | None = None
    """Weights alpha_n of the segments' losses, which sum to 1. null: (0.3, 0.7) for two segments, else proportional to n [our choice]."""

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
        """Return alpha_n of each segment.

        The paper gives no values. It says that they sum to 1, and that the last one is the largest.
        """
        if self.loss_weights is not None:
            return self.loss_weights
        if self.segments == 2:
            return (0.3, 0.7)
        total = self.segments * (self.segments + 1) / 2
        return tuple(n / total for n in range(1, self.segments + 1))
