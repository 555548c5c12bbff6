"""The common parts of the backbones: stages of patch embedding and blocks, and a head.

A backbone knows nothing of segments. It offers its parts as lists of pieces, each a function
(x, top-down spikes or None, neuron_state) -> x. TDFormer runs them segment by segment, and keeps of each what its
recompute policy says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import nn

from tdformer.config import BackboneConfig
from tdformer.models.attention import ControlledAttention, TokenQKAttention
from tdformer.models.layers import DropPath, PatchStem, SpikingMLP, TypedModuleList, one_input
from tdformer.models.neuron_state import NeuronState

Piece = Callable[[torch.Tensor, torch.Tensor | None, NeuronState], torch.Tensor]


class Block(nn.Module):
    """A transformer block: x + attention(x), then x + MLP(x)."""

    def __init__(self, attn: TokenQKAttention | ControlledAttention, mlp: SpikingMLP, drop_path: float) -> None:
        super().__init__()
        self.attn = attn
        self.mlp = mlp
        self.drop_path = DropPath(drop_path)

    def forward(self, x_TBCHW: torch.Tensor, topdown_TBCHW: torch.Tensor | None, neuron_state: NeuronState) -> torch.Tensor:
        """Return x after both residual branches, in the shape of x. topdown_TBCHW steers attentions that have a control module."""
        x = x_TBCHW + self.drop_path(self.attn(one_input(x_TBCHW), topdown_TBCHW, neuron_state))
        return x + self.drop_path(self.mlp(x, neuron_state))


class Stage(nn.Module):
    """The part of a backbone that works at one resolution: a patch embedding, then blocks."""

    def __init__(self, patch_embed: PatchStem, blocks: Iterable[Block]) -> None:
        super().__init__()
        self.patch_embed = patch_embed
        self.blocks = TypedModuleList[Block](blocks)


class Backbone(nn.Module):
    """The base of QKFormer, Spikformer and SpikeDrivenTransformer. `forward` is the plain network, all time steps at once.

    A subclass makes its stages, and then initialises the weights.
    """

    sums_of_spikes = True
    """True if the pieces return small integers (sums of spikes); false if they return currents."""
    head: nn.Linear | nn.Identity
    stages: TypedModuleList[Stage]

    def __init__(self, config: BackboneConfig, num_classes: int, time_steps: int) -> None:
        super().__init__()
        self.config, self.time_steps = config, time_steps
        self.num_features = config.embed_dims
        self.stride = config.stride
        self.head = nn.Linear(config.embed_dims, num_classes)

    # --- its parts ------------------------------------------------------------------------------------------------

    @property
    def patch_stem(self) -> PatchStem:
        """The patch embedding that reads the network's input."""
        first, *_ = self.stages
        return first.patch_embed

    def bottom_up(self) -> list[nn.Module]:
        """Return the modules from the stem's current to S_bu, in the order in which they run."""
        *early, last = self.stages
        before_last = [module for stage in early for module in (stage.patch_embed, *stage.blocks)]
        return [*before_last, last.patch_embed]

    def bottom_up_pieces(self, from_frames: bool) -> Iterator[tuple[nn.Module, Piece]]:
        """Yield each bottom-up module with the function that runs it.

        The first function takes frames of an event sequence if from_frames is true, else the stem's current.
        """
        _, *others = self.bottom_up()
        stem = self.patch_stem
        yield stem, stem.from_frames if from_frames else stem
        yield from ((module, module) for module in others)

    def transform(self) -> TypedModuleList[Block]:
        """Return the last stage's blocks, F_tr, from S_bu to the features. They can be under top-down control."""
        *_, last = self.stages
        return last.blocks

    def control_points(self) -> list[ControlledAttention]:
        """Return the attentions into which control modules can be put, one for each block of the last stage."""
        return [block.attn for block in self.transform() if isinstance(block.attn, ControlledAttention)]

    def head_spikes(self, h_TBC: torch.Tensor, neuron_state: NeuronState) -> torch.Tensor:
        """Return what the mean over time steps gets of the mean over tokens: the same, except after membrane shortcuts."""
        return h_TBC

    def passes_integers(self) -> bool:
        """Tell whether each piece returns whole numbers. An active drop path scales what it keeps, so its sums are not whole."""
        return self.sums_of_spikes and not any(isinstance(part, DropPath) and part.is_active for part in self.modules())

    # --- how it runs ----------------------------------------------------------------------------------------------

    def forward_head(self, h_TBCHW: torch.Tensor, neuron_state: NeuronState | None = None, pre_logits: bool = False) -> torch.Tensor:
        """Return the logits [B, classes] of features: mean over tokens, mean over time steps, linear map."""
        h_BC = self.step_features(h_TBCHW, neuron_state).mean(0)
        return h_BC if pre_logits else self.head(h_BC)

    def step_features(self, h_TBCHW: torch.Tensor, neuron_state: NeuronState | None = None) -> torch.Tensor:
        """Return what the head reads of each time step, [T, B, D]: the mean over tokens, as spikes where the public code has them."""
        return self.head_spikes(h_TBCHW.flatten(3).mean(3), neuron_state or NeuronState())

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the features [T, B, D, H/stride, W/stride].

        x: images [B, C, H, W], shown at every time step, or event sequences [T, B, C, H, W].
        """
        neuron_state, from_frames = NeuronState(), x.dim() == 5
        if not from_frames:
            x = self.patch_stem.stem(x, self.time_steps, segments=1)
            x = x.expand(self.time_steps, *x.shape)
        for piece in [*(piece for _, piece in self.bottom_up_pieces(from_frames)), *self.transform()]:
            x = piece(x, None, neuron_state)
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits [B, classes] of images or event sequences."""
        return self.forward_head(self.forward_features(x))


def drop_path_rates(config: BackboneConfig) -> list[float]:
    """Return the drop path probability of every block, over all stages: it grows linearly from 0 to config.drop_path."""
    return torch.linspace(0, config.drop_path, sum(config.depths), device="cpu").tolist()


def init_truncated_normal(network: nn.Module, kind: type[nn.Linear] | type[nn.Conv2d]) -> None:
    """Give one kind of layer truncated normal weights and zero biases, as in the public code."""
    for module in network.modules():
        if isinstance(module, kind):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
