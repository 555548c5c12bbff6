"""What the backbones have in common: a bottom-up half, blocks under top-down control, and a head.

A backbone knows nothing of segments. It offers its parts as lists of pieces, each a function
(x, top-down spikes or None, membranes) -> x, so that TDFormer can run them segment by segment and keep of each
what its recompute policy says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

import torch
from torch import nn

from tdformer.config import BackboneConfig
from tdformer.models.attention import ControlledAttention
from tdformer.models.layers import DropPath, PatchStem, one_input
from tdformer.models.neuron_state import NeuronState

Piece = Callable[[torch.Tensor, torch.Tensor | None, NeuronState], torch.Tensor]


class Block(nn.Module):
    """x + attention(x); x + MLP(x). The names of its two parts are those of the published checkpoints."""

    def __init__(self, attention: nn.Module, mlp: nn.Module, drop_path: float, attention_name: str = "attn") -> None:
        super().__init__()
        self.add_module(attention_name, attention)
        self.mlp = mlp
        self.drop_path = DropPath(drop_path)
        self._attention_name = attention_name

    @property
    def attention(self) -> nn.Module:
        return self.get_submodule(self._attention_name)

    def forward(self, x_TBCHW: torch.Tensor, topdown_TBCHW: torch.Tensor | None, neuron_state: NeuronState) -> torch.Tensor:
        """Same shape out as in. topdown_TBCHW steers attentions that have a control module."""
        x = x_TBCHW + self.drop_path(self._attend(x_TBCHW, topdown_TBCHW, neuron_state))
        return x + self.drop_path(self.mlp(x, neuron_state))

    def _attend(self, x_TBCHW: torch.Tensor, topdown_TBCHW: torch.Tensor | None, neuron_state: NeuronState) -> torch.Tensor:
        x_TBCHW = one_input(x_TBCHW)
        if isinstance(self.attention, ControlledAttention):
            return self.attention(x_TBCHW, topdown_TBCHW, neuron_state)
        return self.attention(x_TBCHW, neuron_state)


class Backbone(nn.Module):
    """Base of QKFormer, Spikformer and SpikeDrivenTransformer. Its own `forward` is the plain network, all time steps at once."""

    sums_of_spikes = True
    """Whether the pieces hand on small integers (sums of spikes), and not currents."""
    head: nn.Linear | nn.Identity

    def __init__(self, config: BackboneConfig, num_classes: int, time_steps: int) -> None:
        super().__init__()
        self.config, self.time_steps = config, time_steps
        self.num_features = config.embed_dims
        self.stride = config.stride
        self.head = nn.Linear(config.embed_dims, num_classes)
        self._drop_rates = iter(torch.linspace(0, config.drop_path, sum(config.depths), device="cpu").tolist())

    def _blocks(self, count: int, make: Callable[[], tuple[nn.Module, nn.Module]], attention_name: str = "attn") -> nn.ModuleList:
        return nn.ModuleList(Block(*make(), next(self._drop_rates), attention_name) for _ in range(count))

    # --- its parts, which each backbone says ----------------------------------------------------------------------

    @property
    def patch_stem(self) -> PatchStem:
        """The first module."""
        raise NotImplementedError

    def bottom_up(self) -> list[nn.Module]:
        """The modules from the stem's current to S_bu, the first module first."""
        raise NotImplementedError

    def transform(self) -> nn.ModuleList:
        """The last stage's blocks, F_tr, from S_bu to the features; here control modules can be put."""
        raise NotImplementedError

    def head_spikes(self, h_TBC: torch.Tensor, neuron_state: NeuronState) -> torch.Tensor:
        """What comes between the mean over tokens and the mean over time steps: nothing, but for membrane shortcuts."""
        return h_TBC

    # --- what follows from them -----------------------------------------------------------------------------------

    def control_points(self) -> list[ControlledAttention]:
        return [cast(ControlledAttention, cast(Block, block).attention) for block in self.transform()]

    def bottom_up_pieces(self, from_frames: bool) -> Iterator[tuple[nn.Module, Piece]]:
        """Each module with the function that runs it. The first takes the stem's current, or frames of an event sequence."""
        for index, module in enumerate(self.bottom_up()):
            yield module, cast(PatchStem, module).from_frames if from_frames and index == 0 else module

    def passes_integers(self) -> bool:
        """Drop path scales what it keeps: then sums of spikes are no whole numbers."""
        return self.sums_of_spikes and not any(isinstance(part, DropPath) and part.is_active for part in self.modules())

    def forward_head(self, h_TBCHW: torch.Tensor, neuron_state: NeuronState | None = None, pre_logits: bool = False) -> torch.Tensor:
        """Features of some time steps -> logits [B, classes]: mean over tokens, mean over time steps, linear."""
        h_BC = self.head_spikes(h_TBCHW.flatten(3).mean(3), neuron_state or NeuronState()).mean(0)
        return h_BC if pre_logits else self.head(h_BC)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Images [B, C, H, W], shown at every time step, or event sequences [T, B, C, H, W] -> [T, B, D, H/stride, W/stride]."""
        neuron_state, from_frames = NeuronState(), x.dim() == 5
        if not from_frames:
            x = self.patch_stem.stem(x, self.time_steps, segments=1)
            x = x.expand(self.time_steps, *x.shape)
        for piece in [*(piece for _, piece in self.bottom_up_pieces(from_frames)), *self.transform()]:
            x = piece(x, None, neuron_state)
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images or event sequences -> logits [B, classes]."""
        return self.forward_head(self.forward_features(x))


class SingleStage(Backbone):
    """A backbone whose blocks are all under top-down control, as they all work at one resolution."""

    patch_embed: PatchStem
    block: nn.ModuleList

    @property
    def patch_stem(self) -> PatchStem:
        return self.patch_embed

    def bottom_up(self) -> list[nn.Module]:
        return [self.patch_embed]

    def transform(self) -> nn.ModuleList:
        return self.block


def init_truncated_normal(network: nn.Module, kind: type[nn.Linear] | type[nn.Conv2d]) -> None:
    """Truncated normal weights and zero biases for one kind of layer, as in the public code."""
    for module in network.modules():
        if isinstance(module, kind):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
