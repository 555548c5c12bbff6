"""TDFormer: a backbone run segment by segment, each segment's result controlling the attention of the next.

S_bu(n) = bottom-up stages at the steps of segment n
H(n)    = transformer blocks (S_bu(n), S_td(n-1))
S_td(n) = processing module (H(n))
O(n)    = head (H(n))                                         (paper section 4, figure 2)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, get_args

import torch
from torch import nn

from data_pipelines.errors import UserError
from tdformer.config import ModelConfig, RecomputePolicy
from tdformer.config.yaml_io import checked
from tdformer.models.backbones.base import Backbone, Piece, init_truncated_normal
from tdformer.models.backbones.qkformer import QKFormer
from tdformer.models.backbones.sdt import SpikeDrivenTransformer
from tdformer.models.backbones.spikformer import Spikformer
from tdformer.models.checkpointing.activation_checkpointing import ActivationCheckpointing
from tdformer.models.feedback import ControlModule, ProcessingModule
from tdformer.models.layers import one_input
from tdformer.models.neuron_state import NeuronState
from tdformer.models.neurons import LIF

BACKBONES: dict[str, type[Backbone]] = {"qkformer": QKFormer, "spikformer": Spikformer, "sdt": SpikeDrivenTransformer}


class TDFormer(nn.Module):
    """The network of a run: a backbone in segments, with the top-down path between them if the configuration has feedback.

    Segments share all weights. Membrane potentials (if carried) and top-down spikes link them. BatchNorm sees the time steps of one
    segment at a time.
    """

    def __init__(self, config: ModelConfig, recompute: RecomputePolicy = "none") -> None:
        super().__init__()
        if recompute not in get_args(RecomputePolicy):
            raise UserError(f"recompute must be one of {', '.join(get_args(RecomputePolicy))}, got {recompute!r}")
        self.config, self.recompute = config, recompute
        self.num_classes = config.num_classes
        self.fused_kernels = False
        self.kept_exactly: list[torch.Tensor] | None = None
        """See ActivationCheckpointing. ModelWithLoss collects these flags, so that training does not wait for them."""
        self.backbone = BACKBONES[config.backbone.family](config.backbone, config.num_classes, config.time_steps)
        self.num_features = self.backbone.num_features
        self.processing: ProcessingModule | None = None
        # The top-down weights come last, so that the backbone's initial weights do not depend on them.
        if config.feedback is not None:
            points, feedback = self.backbone.control_points(), config.feedback
            for index in range(len(points)) if feedback.blocks == "all" else feedback.blocks:
                points[index].control = ControlModule(self.num_features, feedback.control, feedback.init_std)
            self.processing = ProcessingModule(self.num_features, feedback.processing, feedback.clamp)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.momentum = config.batch_norm_momentum

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the features H(n) of all time steps, [T, B, D, H/stride, W/stride].

        x: images [B, C, H, W], shown at every time step, or event sequences [T, B, C, H, W]. Raises ValueError for sizes that the network
        does not take.
        """
        return torch.cat(list(self._features(x)))

    def forward_head(self, h_TBCHW: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Return the logits of the last segment [B, classes], or the features [B, D] before the classifier. h_TBCHW: all features."""
        return self._segment_outputs(h_TBCHW, pre_logits)[-1]

    def forward_segments(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits of every segment, [segments, B, classes], for images or event sequences. Training uses all of them."""
        return torch.stack(self._segment_outputs(self.forward_features(x)))

    def stream(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield the logits [B, classes] after each segment, to the bits of forward_segments. A segment runs when its logits are asked for.

        Membranes and top-down spikes are carried in between. Who has seen enough leaves the loop, and saves the segments that are left:

            for logits_BK in model.stream(images_BCHW):
                if logits_BK.softmax(1).max(1).values.min() > 0.9:
                    break
        """
        for h_TBCHW, neuron_state in zip(self._features(x), self._neuron_states(), strict=True):
            yield self.backbone.forward_head(h_TBCHW, neuron_state)

    def forward_steps(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits of every time step, [segments, T/segments, B, classes]. Their mean over a segment is that of its logits."""
        segments = zip(self._segments_of(self.forward_features(x)), self._neuron_states(), strict=True)
        return torch.stack([self.backbone.head(self.backbone.step_features(h, neuron_state)) for h, neuron_state in segments])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits of the last segment [B, classes], for images or event sequences. Only they are evaluated [paper]."""
        return self.forward_head(self.forward_features(x))

    def topdown_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters that the network has beyond its backbone, by name."""
        modules = {module for module in self.modules() if isinstance(module, ControlModule) or module is self.processing}
        own = {parameter for module in modules for parameter in module.parameters()}
        return {name: parameter for name, parameter in self.named_parameters() if parameter in own}

    @property
    def time_steps(self) -> int:
        """Return T, the number of time steps of a sample. `set_time_steps` changes it."""
        return self.config.time_steps

    @property
    def segments(self) -> int:
        """Return the number of segments that the time steps are cut into. `set_time_steps` changes it."""
        return self.config.segments

    def set_time_steps(self, time_steps: int, segments: int | None = None) -> None:
        """Let the network run for another number of time steps, in as many segments as now unless `segments` is given. No weight changes.

        Another number of segments gets the default weights of the losses. Raises ConfigError, a UserError, if the two do not fit.
        """
        segments = self.segments if segments is None else segments
        changes: dict[str, Any] = {"time_steps": time_steps, "segments": segments}
        if segments != self.segments:
            changes["loss_weights"] = None
        self.config = checked(ModelConfig, self.config.model_dump() | changes, "the network cannot run so")
        self.backbone.time_steps = time_steps

    def set_input(self, image_size: int, mean: Sequence[float], std: Sequence[float], crop_pct: float) -> None:
        """Say which images the network is for, in the form that timm.data.resolve_model_data_config reads."""
        self.pretrained_cfg = self.default_cfg = {
            "input_size": (self.config.backbone.in_channels, image_size, image_size),
            "mean": tuple(mean),
            "std": tuple(std),
            "crop_pct": crop_pct,
            "interpolation": "bicubic",
            "num_classes": self.num_classes,
            "classifier": "backbone.head",
        }

    # --- timm's verbs -----------------------------------------------------------------------------------------------

    def get_classifier(self) -> nn.Module:
        return self.backbone.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Give the network a new head, and write its number of classes into `config` and `default_cfg`.

        With 0 classes the network gets no head, and returns features [B, D]. Only average pooling exists: raises UserError for another.
        """
        if global_pool not in (None, "avg"):
            raise UserError(f"global_pool must be avg, the mean over tokens and time steps, got {global_pool!r}")
        if num_classes:
            self.config = checked(ModelConfig, self.config.model_dump() | {"num_classes": num_classes}, "the head cannot be made")
        self.num_classes = num_classes
        if hasattr(self, "default_cfg"):
            self.pretrained_cfg = self.default_cfg = {**self.default_cfg, "num_classes": num_classes}
        like = next(self.backbone.parameters())
        head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        init_truncated_normal(head, nn.Linear)
        self.backbone.head = head.to(like.device, like.dtype)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Switch activation checkpointing to block_segment, or off. The name is timm's."""
        self.recompute = "block_segment" if enable else "none"

    def use_fused_kernels(self, fused: bool = True) -> None:
        """Run LIF neurons as one kernel with the BatchNorm before them, on channels_last tensors, or else step by step."""
        self.fused_kernels = fused
        for module in self.modules():
            if isinstance(module, LIF):
                module.fused = fused

    # --- how a pass goes --------------------------------------------------------------------------------------------

    def _features(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield the features H(n) of each segment, [T/segments, B, D, H/stride, W/stride]."""
        self._check(x)
        recompute, topdown_TBCHW = ActivationCheckpointing(self.recompute, self.kept_exactly), None
        for number, (frames_TBCHW, neuron_state) in enumerate(zip(self._frames(x, recompute), self._neuron_states(), strict=True), start=1):
            run = partial(self._segment, recompute, from_frames=x.dim() == 5, is_last=number == self.segments)
            h_TBCHW, topdown_TBCHW = recompute.run("segment", run, self, frames_TBCHW, topdown_TBCHW, neuron_state)
            yield h_TBCHW

    def _check(self, x: torch.Tensor) -> None:
        channels, stride = self.config.backbone.in_channels, self.backbone.stride
        if x.dim() not in (4, 5) or x.shape[-3] != channels:
            raise ValueError(f"input must be images [B, {channels}, H, W] or event sequences [T, B, {channels}, H, W], got {list(x.shape)}")
        if not x.numel():
            raise ValueError(f"input must hold at least one image, got an empty batch of shape {list(x.shape)}")
        if not x.is_floating_point():
            raise ValueError(f"input must be floating point (normalised images), got {x.dtype}")
        if x.dim() == 5 and x.shape[0] != self.time_steps:
            raise ValueError(f"an event sequence must have time_steps = {self.time_steps} frames, got {x.shape[0]}")
        if x.shape[-2] % stride or x.shape[-1] % stride:
            raise ValueError(f"image height and width must be multiples of {stride}, got {tuple(x.shape[-2:])}")

    def _frames(self, x: torch.Tensor, recompute: ActivationCheckpointing) -> list[torch.Tensor]:
        """Return the input of each segment, [T/segments, B, …]: the stem's current of an image, computed once, or frames."""
        steps = self.time_steps // self.segments
        x_BCHW = x.flatten(0, -4)
        if self.fused_kernels:
            x_BCHW = x_BCHW.contiguous(memory_format=torch.channels_last)
        if x.dim() == 5:
            return list(x_BCHW.unflatten(0, (self.segments, steps, -1)))
        stem = self.backbone.patch_stem

        def run(image_BCHW: torch.Tensor, topdown: torch.Tensor | None, neuron_state: NeuronState) -> tuple[torch.Tensor]:
            return (stem.stem(image_BCHW, steps, self.segments),)

        (current_BCHW,) = recompute.run("stem", run, stem, x_BCHW, None, NeuronState())
        return [current_BCHW.expand(steps, *current_BCHW.shape)] * self.segments

    def _segment(
        self,
        recompute: ActivationCheckpointing,
        frames_TBCHW: torch.Tensor,
        topdown_TBCHW: torch.Tensor | None,
        neuron_state: NeuronState,
        *,
        from_frames: bool,
        is_last: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Run one segment. Return its features H(n), and the top-down spikes for the next one."""

        def run(piece: Piece, module: nn.Module, x_TBCHW: torch.Tensor, topdown: torch.Tensor | None, integers: bool) -> torch.Tensor:
            def results(*inputs: Any) -> tuple[torch.Tensor]:
                return (piece(*inputs),)

            return recompute.run("block", results, module, x_TBCHW, topdown, neuron_state, integers=integers)[0]

        h_TBCHW, integers = frames_TBCHW, self.backbone.passes_integers()
        for index, (module, piece) in enumerate(self.backbone.bottom_up_pieces(from_frames)):
            h_TBCHW = run(piece, module, h_TBCHW, None, integers and index > 0)
        for block in self.backbone.transform():
            h_TBCHW = run(block, block, h_TBCHW, topdown_TBCHW, integers)
        if is_last or self.processing is None:
            return h_TBCHW, None
        return h_TBCHW, self.processing(one_input(h_TBCHW), neuron_state)

    def _segment_outputs(self, h_TBCHW: torch.Tensor, pre_logits: bool = False) -> list[torch.Tensor]:
        return [
            self.backbone.forward_head(h, neuron_state, pre_logits)
            for h, neuron_state in zip(self._segments_of(h_TBCHW), self._neuron_states(), strict=True)
        ]

    def _segments_of(self, h_TBCHW: torch.Tensor) -> torch.Tensor:
        return h_TBCHW.unflatten(0, (self.segments, -1))

    def _neuron_states(self) -> Iterator[NeuronState]:
        """Yield the neuron state of each segment. If it is carried, it goes on from the segment before."""
        before: dict[nn.Module, torch.Tensor] = {}
        for number in range(1, self.segments + 1):
            neuron_state = NeuronState(before, carried=self.config.carry_membrane and number < self.segments)
            yield neuron_state
            before = neuron_state.after
