"""The pieces that every backbone is made of. Shapes: T time steps, B samples, C channels, H x W pixels, N = H·W tokens."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn

from tdformer.models.channel_maps import Pointwise
from tdformer.models.neuron_state import NeuronState
from tdformer.models.neurons import LIF

Synapse = nn.Conv2d | nn.Conv1d | nn.Linear


class SpikingModule(nn.Module):
    """A module of groups synapse -> BatchNorm -> neurons, under the names that published checkpoints give them.

    A group's name says where its parts differ: "q_{}" holds q_conv (or q_linear), q_bn and q_lif, "proj_{}1" proj_conv1 …
    """

    def __init__(self) -> None:
        super().__init__()
        self._synapse_kinds: dict[str, str] = {}

    def add(self, group: str, synapse: Synapse, neurons: bool = True) -> None:
        self._synapse_kinds[group] = "linear" if isinstance(synapse, nn.Linear) else "conv"
        channels = synapse.out_features if isinstance(synapse, nn.Linear) else synapse.out_channels
        self.add_module(group.format(self._synapse_kinds[group]), synapse)
        self.add_module(group.format("bn"), nn.BatchNorm2d(channels) if isinstance(synapse, nn.Conv2d) else nn.BatchNorm1d(channels))
        if neurons:
            self.add_module(group.format("lif"), LIF())

    def current(self, group: str, x_TBCHW: torch.Tensor, *, pool: bool = False, plus_TBC: torch.Tensor | None = None) -> torch.Tensor:
        """What the group's neurons receive: synapse, BatchNorm and, if asked, max-pool, time steps and samples as one batch.

        [T, B, C, H, W] -> [T, B, C', H', W'], or [T, B, C', N] if the synapse works on tokens. plus_TBC is added before BatchNorm.
        """
        y_TBC = self._mapped(group, x_TBCHW, plus_TBC)
        y = getattr(self, group.format("bn"))(y_TBC.flatten(0, 1))
        return (max_pool(y) if pool else y).unflatten(0, x_TBCHW.shape[:2])

    def spikes(self, group: str, current_TBC: torch.Tensor, neuron_state: NeuronState) -> torch.Tensor:
        return getattr(self, group.format("lif"))(current_TBC, neuron_state)

    def fire(
        self, group: str, x_TBCHW: torch.Tensor, neuron_state: NeuronState, *, pool: bool = False, plus_TBC: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Synapse, BatchNorm and neurons."""
        if pool:
            return self.spikes(group, self.current(group, x_TBCHW, pool=True, plus_TBC=plus_TBC), neuron_state)
        norm = getattr(self, group.format("bn"))
        return getattr(self, group.format("lif"))(self._mapped(group, x_TBCHW, plus_TBC), neuron_state, norm)

    def _mapped(self, group: str, x_TBCHW: torch.Tensor, plus_TBC: torch.Tensor | None) -> torch.Tensor:
        synapse = getattr(self, group.format(self._synapse_kinds[group]))
        if not isinstance(synapse, nn.Conv2d):
            x_TBCHW = x_TBCHW.flatten(3)
        y = synapse(x_TBCHW.flatten(0, 1))
        if plus_TBC is not None:
            y = y + plus_TBC.reshape(y.shape)
        return y.unflatten(0, x_TBCHW.shape[:2])


class PatchStem(SpikingModule):
    """A backbone's first module. Its first group, "proj_{}", can be computed once for an image shown at every time step."""

    stem_pools = False
    """Whether a max-pool follows the first BatchNorm."""

    def stem(self, x_BCHW: torch.Tensor, steps: int, segments: int) -> torch.Tensor:
        """An image -> the current [B, C', H', W'] that it gives at each of `steps` time steps of each of `segments` segments."""
        y = batch_norm_of_repeated(self.get_submodule("proj_bn"), self.get_submodule("proj_conv")(x_BCHW), steps, segments)
        return max_pool(y) if self.stem_pools else y

    def from_frames(self, x_TBCHW: torch.Tensor, topdown_TBCHW: torch.Tensor | None, neuron_state: NeuronState) -> torch.Tensor:
        """An event sequence -> what `forward` gives from the current of its first group."""
        return self(self.current("proj_{}", x_TBCHW, pool=self.stem_pools), topdown_TBCHW, neuron_state)


class PatchSplitting(PatchStem):
    """What Spikformer and SDT begin with: four 3x3 convolutions up to D channels, and one more for positions."""

    def __init__(self, in_channels: int, channels: int, pools: tuple[bool, ...], position_neurons: bool) -> None:
        super().__init__()
        self.pools, width = pools, in_channels
        for number, part in zip(("", "1", "2", "3"), (8, 4, 2, 1), strict=True):
            self.add("proj_{}" + number, conv3x3(width, channels // part))
            width = channels // part
        self.add("rpe_{}", conv3x3(channels, channels), neurons=position_neurons)


def batch_norm_of_repeated(bn: nn.Module, y_BCHW: torch.Tensor, steps: int, segments: int) -> torch.Tensor:
    """BatchNorm of y as if y stood `steps` times in its batch, and the batch were given `segments` times.

    Copies do not change mean and variance; what they change are the running statistics: the variance's unbiased
    estimate is over `steps` times as many values, and they are updated `segments` times.
    """
    assert isinstance(bn, nn.BatchNorm2d | nn.SyncBatchNorm)
    if not (bn.training and bn.track_running_stats):
        return bn(y_BCHW)
    assert bn.running_var is not None
    assert bn.num_batches_tracked is not None
    assert bn.momentum is not None
    momentum, variance_before, values = bn.momentum, bn.running_var.clone(), y_BCHW.numel() // y_BCHW.shape[1]
    if isinstance(bn, nn.SyncBatchNorm):
        values *= dist.get_world_size(bn.process_group)
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
    """Halves height and width (rounded up), as all public backbones do it."""
    return nn.functional.max_pool2d(x_BCHW, 3, stride=2, padding=1)


def max_pool_spikes(x_TBCHW: torch.Tensor) -> torch.Tensor:
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
        if not self.is_active:
            return x_TB
        keep = 1 - self.probability
        mask_B = torch.rand(x_TB.shape[1], device=x_TB.device) < keep
        return x_TB * (mask_B / keep).to(x_TB.dtype).view(1, -1, *[1] * (x_TB.dim() - 2))


class SpikingMLP(SpikingModule):
    """Map, BN, LIF to `ratio` times the channels, and back."""

    def __init__(self, channels: int, ratio: int, pointwise: Pointwise, name: str = "fc") -> None:
        super().__init__()
        self.name = name
        self.add(name + "1_{}", pointwise(channels, channels * ratio))
        self.add(name + "2_{}", pointwise(channels * ratio, channels))

    def forward(self, x_TBCHW: torch.Tensor, neuron_state: NeuronState) -> torch.Tensor:
        """Same shape out as in."""
        hidden = self.fire(self.name + "1_{}", x_TBCHW, neuron_state)
        return self.fire(self.name + "2_{}", hidden, neuron_state).view_as(x_TBCHW)


class MembraneMLP(SpikingMLP):
    """The same maps with the neurons before each: currents in, currents out (membrane shortcut)."""

    def forward(self, x_TBCHW: torch.Tensor, neuron_state: NeuronState) -> torch.Tensor:
        for group in (self.name + "1_{}", self.name + "2_{}"):
            x_TBCHW = self.current(group, self.spikes(group, x_TBCHW, neuron_state))
        return x_TBCHW


def one_input(x: torch.Tensor) -> torch.Tensor:
    """x, for a module that reads it more than once while others read it too.

    A node of its own in the graph, where the gradients of that module's reads are added up before those of the others join.
    ZeRO 3 puts nodes at the inputs of modules, which does the same: so they are added in one order, to the same bits, at every
    ZeRO stage.
    """
    return x.view_as(x)


def conv3x3(channels_in: int, channels_out: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)


def freeze_unused(*modules: nn.Module) -> None:
    """Published checkpoints hold weights that their forward pass never reads. They are kept, and never trained."""
    for module in modules:
        module.requires_grad_(False)
