"""The layers that every backbone is made of. Shapes: T time steps, B samples, C channels, H x W pixels, N = H·W tokens."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Generic, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn

from tdformer.models.channel_maps import Pointwise
from tdformer.models.neuron_state import NeuronState
from tdformer.models.neurons import LIF

Synapse = nn.Conv2d | nn.Conv1d | nn.Linear
M = TypeVar("M", bound=nn.Module)


class TypedModuleList(nn.ModuleList, Generic[M]):
    """An nn.ModuleList of modules of one type, so that a type checker knows the attributes of its members."""

    def __iter__(self) -> Iterator[M]:
        return cast(Iterator[M], super().__iter__())


class CurrentLayer(nn.Module):
    """A synapse (convolution or linear map) with the BatchNorm behind it: spikes in, currents out.

    synapse: an nn.Conv2d takes images, an nn.Conv1d or nn.Linear takes tokens.
    pools: a max-pool behind the BatchNorm halves height and width.
    """

    def __init__(self, synapse: Synapse, *, pools: bool = False) -> None:
        super().__init__()
        channels = synapse.out_features if isinstance(synapse, nn.Linear) else synapse.out_channels
        self.synapse = synapse
        self.norm: nn.Module = nn.BatchNorm2d(channels) if isinstance(synapse, nn.Conv2d) else nn.BatchNorm1d(channels)
        self.pools = pools

    def current(self, x_TBCHW: torch.Tensor, plus_TBC: torch.Tensor | None = None) -> torch.Tensor:
        """Return the current that x gives: synapse, BatchNorm and max-pool, with time steps and samples as one batch.

        [T, B, C, H, W] -> [T, B, C', H', W'], or [T, B, C', N] if the synapse takes tokens. plus_TBC is added before the BatchNorm.
        """
        y = self.norm(self._mapped(x_TBCHW, plus_TBC).flatten(0, 1))
        return (max_pool(y) if self.pools else y).unflatten(0, x_TBCHW.shape[:2])

    def _mapped(self, x_TBCHW: torch.Tensor, plus_TBC: torch.Tensor | None) -> torch.Tensor:
        if not isinstance(self.synapse, nn.Conv2d):
            x_TBCHW = x_TBCHW.flatten(3)
        y = self.synapse(x_TBCHW.flatten(0, 1))
        if plus_TBC is not None:
            y = y + plus_TBC.reshape(y.shape)
        return y.unflatten(0, x_TBCHW.shape[:2])


class SpikingLayer(CurrentLayer):
    """A synapse, its BatchNorm and LIF neurons: spikes in, spikes out."""

    def __init__(self, synapse: Synapse, *, pools: bool = False) -> None:
        super().__init__(synapse, pools=pools)
        self.neurons = LIF()

    def forward(self, x_TBCHW: torch.Tensor, neuron_state: NeuronState, plus_TBC: torch.Tensor | None = None) -> torch.Tensor:
        """Return the spikes that x gives, in the shape of `current`. plus_TBC is added before the BatchNorm."""
        if self.pools:
            return self.neurons(self.current(x_TBCHW, plus_TBC), neuron_state)
        # The neurons get the BatchNorm too, since one kernel can do the work of both.
        return self.neurons(self._mapped(x_TBCHW, plus_TBC), neuron_state, self.norm)


class PatchStem(nn.Module):
    """The base of patch embeddings. The current of the first convolution is computed once for an image shown at every time step.

    `forward` of a network's first patch embedding takes that current.
    """

    convolutions: TypedModuleList[SpikingLayer]

    @property
    def first(self) -> SpikingLayer:
        """The convolution that reads the network's input."""
        return next(iter(self.convolutions))

    def stem(self, x_BCHW: torch.Tensor, steps: int, segments: int) -> torch.Tensor:
        """Return the current [B, C', H', W'] that an image gives at each of `steps` time steps of each of `segments` segments."""
        y = batch_norm_of_repeated(self.first.norm, self.first.synapse(x_BCHW), steps, segments)
        return max_pool(y) if self.first.pools else y

    def from_frames(self, x_TBCHW: torch.Tensor, topdown_TBCHW: torch.Tensor | None, neuron_state: NeuronState) -> torch.Tensor:
        """Return for an event sequence what `forward` returns for the current of the first convolution."""
        return self(self.first.current(x_TBCHW), topdown_TBCHW, neuron_state)


def patch_splitting(in_channels: int, channels: int, last_pools: bool = False) -> TypedModuleList[SpikingLayer]:
    """Make the four 3x3 convolutions with which Spikformer and SDT begin: to D/8, D/4, D/2 and D channels."""
    widths = (in_channels, channels // 8, channels // 4, channels // 2)
    first_three = [SpikingLayer(conv3x3(width, next_width)) for width, next_width in pairwise(widths)]
    return TypedModuleList([*first_three, SpikingLayer(conv3x3(widths[-1], channels), pools=last_pools)])


def batch_norm_of_repeated(bn: nn.Module, y_BCHW: torch.Tensor, steps: int, segments: int) -> torch.Tensor:
    """Return BatchNorm of y as if y stood `steps` times in its batch, and the batch were given `segments` times.

    Copies do not change mean and variance. They do change the running statistics: the variance's unbiased estimate
    is over `steps` times as many values, and the statistics are updated `segments` times. A layer whose statistics rest (a frozen or
    folded BatchNorm, an Identity) is called as it is.
    """
    if not (isinstance(bn, nn.BatchNorm2d | nn.SyncBatchNorm) and bn.training and bn.track_running_stats):
        return bn(y_BCHW)
    assert bn.running_var is not None
    assert bn.num_batches_tracked is not None
    momentum, variance_before, values = bn.momentum, bn.running_var.clone(), y_BCHW.numel() // y_BCHW.shape[1]
    if isinstance(bn, nn.SyncBatchNorm):
        values *= dist.get_world_size(bn.process_group)
    if momentum is None:  # torch then takes the mean over all batches so far
        batches = bn.num_batches_tracked.item()
        remains = batches / (batches + segments)
    else:
        remains = (1 - momentum) ** segments
    bn.momentum = 1 - remains
    try:
        y_BCHW = bn(y_BCHW)
    finally:
        bn.momentum = momentum
    unbias = steps * (values - 1) / (steps * values - 1)
    # .data: the buffers are kept for the backward pass, which does not read them in training.
    bn.running_var.data.mul_(unbias).add_(variance_before, alpha=(1 - unbias) * remains)
    bn.num_batches_tracked.data.add_(segments - 1)
    return y_BCHW


def max_pool(x_BCHW: torch.Tensor) -> torch.Tensor:
    """Halve height and width (rounded up), as all public backbones do it."""
    return nn.functional.max_pool2d(x_BCHW, 3, stride=2, padding=1)


def max_pool_spikes(x_TBCHW: torch.Tensor) -> torch.Tensor:
    """Halve height and width of each time step."""
    return max_pool(x_TBCHW.flatten(0, 1)).unflatten(0, x_TBCHW.shape[:2])


class DropPath(nn.Module):
    """Drops a residual branch for whole samples (the same ones at every time step), and scales up the others."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    @property
    def is_active(self) -> bool:
        return self.training and self.probability > 0

    def forward(self, x_TB: torch.Tensor) -> torch.Tensor:
        """Return the branch [T, B, …], dropped or scaled."""
        if not self.is_active:
            return x_TB
        keep = 1 - self.probability
        mask_B = torch.rand(x_TB.shape[1], device=x_TB.device) < keep
        return x_TB * (mask_B / keep).to(x_TB.dtype).view(1, -1, *[1] * (x_TB.dim() - 2))


class SpikingMLP(nn.Module):
    """Two spiking layers: the first widens the channels `ratio` times, the second goes back."""

    def __init__(self, channels: int, ratio: int, pointwise: Pointwise) -> None:
        super().__init__()
        self.fc1 = SpikingLayer(pointwise(channels, channels * ratio))
        self.fc2 = SpikingLayer(pointwise(channels * ratio, channels))

    def forward(self, x_TBCHW: torch.Tensor, neuron_state: NeuronState) -> torch.Tensor:
        """Return spikes in the shape of x."""
        return self.fc2(self.fc1(x_TBCHW, neuron_state), neuron_state).view_as(x_TBCHW)


class MembraneMLP(SpikingMLP):
    """Two layers with the neurons before each synapse: currents in, currents out (membrane shortcut)."""

    def forward(self, x_TBCHW: torch.Tensor, neuron_state: NeuronState) -> torch.Tensor:
        """Return currents in the shape of x."""
        hidden_TBCHW = self.fc1.current(self.fc1.neurons(x_TBCHW, neuron_state))
        return self.fc2.current(self.fc2.neurons(hidden_TBCHW, neuron_state))


def one_input(x: torch.Tensor) -> torch.Tensor:
    """Return x as a node of its own in the graph, for a module that reads x more than once while others read it too.

    The gradients of that module's reads are added up at this node before those of the others join. ZeRO 3 puts nodes
    at the inputs of modules, which does the same. So every ZeRO stage adds the gradients in one order, to the same bits.
    """
    return x.view_as(x)


def conv3x3(channels_in: int, channels_out: int) -> nn.Conv2d:
    """Make the 3x3 convolution of the patch embeddings."""
    return nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)


def freeze_unused(*modules: nn.Module) -> None:
    """Keep weights from training. Published checkpoints hold weights that the forward pass never reads."""
    for module in modules:
        module.requires_grad_(False)
