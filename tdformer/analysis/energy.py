"""Estimates the energy of one inference from how often neurons fire, layer by layer and segment by segment.

Two conventions. An addition (AC) costs 0.9 pJ and a multiplication with addition (MAC) 4.6 pJ, 32-bit at 45 nm (Horowitz 2014). BatchNorm
counts as folded into the synapses.

  paper    the first convolution costs its MACs. Every other layer costs rate x MACs additions, where MACs are those of a dense layer over
           all time steps and the rate is the share of its inputs that are not 0 [paper]. Whether attention products and the top-down path
           are counted is not said. They are here [our choice].
  strict   additions are counted where all inputs are 0 or 1, one for each weight that a spike meets within the image, or for each two
           spikes that meet in a product of spikes. A layer whose inputs are other numbers, such as sums of spikes, costs all its MACs.

The classifier is left out: it has less than a thousandth of the MACs.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tdformer.analysis.samples import Part
from tdformer.analysis.sums import add_up
from tdformer.distributed.context import DistContext
from tdformer.models.attention import SpikingSelfAttention
from tdformer.models.tdformer import TDFormer

AC_PJ, MAC_PJ = 0.9, 4.6
CONTROL = ".control."
"""A part of the name of each layer in a control module."""


@dataclass(frozen=True)
class Layer:
    """What one layer does for one image, in one segment. `macs` and `operations` are means per image."""

    name: str
    segment: int | None
    """The segment, from 1. None for the stem's convolution of an image, which all segments share."""
    is_first: bool
    """True for the convolution that reads the network's input."""
    is_binary: bool
    """True if all inputs were 0 or 1."""
    macs: float
    rate: float
    operations: float
    """Weights, or spikes, that meet an input other than 0."""

    @property
    def paper_mj(self) -> float:
        return 1e-9 * (MAC_PJ * self.macs if self.is_first else AC_PJ * self.rate * self.macs)

    @property
    def strict_mj(self) -> float:
        return 1e-9 * (AC_PJ * self.operations if self.is_binary else MAC_PJ * self.macs)


def measure(model: TDFormer, samples: Iterable[Part], context: DistContext) -> dict[str, Any]:
    """Measure the energy of a network. Collective. Returns the same result on all ranks, ready for JSON."""
    meter, images = Meter(model), 0
    with torch.no_grad(), meter.measuring():
        for part in samples:
            meter.begin_pass()
            model(part.images)
            images += len(part.labels_B)
    layers = meter.layers(images, context)
    segments = range(1, model.segments + 1)
    return {
        "layers": [vars(layer) | {"paper_mj": layer.paper_mj, "strict_mj": layer.strict_mj} for layer in layers],
        "segments": [
            {
                "segment": segment,
                "paper_mj": sum(layer.paper_mj for layer in layers if layer.segment == segment),
                "strict_mj": sum(layer.strict_mj for layer in layers if layer.segment == segment),
            }
            for segment in (None, *segments)
        ],
        "paper_mj": sum(layer.paper_mj for layer in layers),
        "strict_mj": sum(layer.strict_mj for layer in layers),
        "topdown_paper_mj": sum(layer.paper_mj for layer in layers if _is_topdown(layer.name)),
        "topdown_strict_mj": sum(layer.strict_mj for layer in layers if _is_topdown(layer.name)),
    }


def _is_topdown(name: str) -> bool:
    return name.startswith("processing") or CONTROL in name


class Meter:
    """Counts what the synapses of a network do in its forward passes, from outside the network.

    Each layer runs once per segment and pass, so the number of its call is its segment. Control modules rest in the first segment.
    """

    def __init__(self, model: TDFormer) -> None:
        self._model, self._stem = model, model.backbone.patch_stem.first.synapse
        self._calls: dict[str, int] = {}
        self._sums: dict[tuple[str, int], torch.Tensor] = defaultdict(lambda: torch.zeros(5, dtype=torch.float64))

    @contextmanager
    def measuring(self) -> Iterator[None]:
        hooks = list(self._hooks())
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def begin_pass(self) -> None:
        self._calls = {}

    def layers(self, images: int, context: DistContext) -> list[Layer]:
        """Return the means per image over all ranks, in the order in which the layers run."""
        totals = add_up(self._sums, context)
        (count,) = context.all_reduce_sum(torch.tensor([images], dtype=torch.float64)).tolist()
        made = []
        for (name, call), total in totals.items():
            macs, nonzero, inputs, operations, others = total.tolist()
            is_first = name == self._name_of_stem()
            shared = is_first and all(other != name or number == 1 for other, number in totals) and self._model.segments > 1
            made.append(
                Layer(name, None if shared else call, is_first, others == 0, macs / count, nonzero / max(inputs, 1), operations / count)
            )
        return made

    def _name_of_stem(self) -> str:
        return next(name for name, module in self._model.named_modules() if module is self._stem)

    def _hooks(self) -> Iterator[torch.utils.hooks.RemovableHandle]:
        for name, module in self._model.named_modules():
            if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear) and module is not self._model.backbone.head:
                yield module.register_forward_hook(self._counting(name))
            if isinstance(module, SpikingSelfAttention):
                yield from self._products(name, module)
        if (processing := self._model.processing) is not None:
            yield processing.register_forward_hook(self._mixer_and_map)

    def _counting(self, name: str) -> Any:
        def count(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            assert isinstance(module.weight, torch.Tensor)
            self._add(name, inputs[0], output.numel() * module.weight[0].numel(), _weights_met(module, inputs[0]))

        return count

    def _products(self, name: str, attention: SpikingSelfAttention) -> Iterator[torch.utils.hooks.RemovableHandle]:
        """Count q (k^T v). In k^T v the spikes of a token's keys and values meet, each with each, within a head."""
        spikes: dict[str, torch.Tensor] = {}

        def keeping(which: str) -> Any:
            def keep(module: nn.Module, inputs: object, spikes_TBC: torch.Tensor) -> None:
                spikes[which] = spikes_TBC

            return keep

        def count(module: nn.Module, inputs: object, v_TBC: torch.Tensor) -> None:
            k_TBC, q_TBC = spikes.pop("k"), spikes.pop("q")
            heads = (attention.num_heads, -1)
            of_k, of_v = (tensor.unflatten(2, heads).sum(3, dtype=torch.float64) for tensor in (k_TBC, v_TBC))
            width = k_TBC.shape[2] // attention.num_heads
            self._add(f"{name}.k^T v", k_TBC, k_TBC.numel() * width, (of_k * of_v).sum())
            self._add(f"{name}.q (k^T v)", q_TBC, q_TBC.numel() * width, q_TBC.count_nonzero() * width)

        yield attention.q.register_forward_hook(keeping("q"))
        yield attention.k.register_forward_hook(keeping("k"))
        yield attention.v.register_forward_hook(count)

    def _mixer_and_map(self, module: nn.Module, inputs: tuple[Any, ...], spikes: object) -> None:
        """Count the mixer, which takes all channels to one map, and the product of that map with each channel."""
        x_TBCHW, processing = inputs[0], self._model.processing
        assert processing is not None
        ones = x_TBCHW.new_ones(1, 1, *processing.weight.shape[2:], dtype=torch.float32)
        taps = nn.functional.conv2d(_nonzero(x_TBCHW.flatten(0, 1)), ones, padding="same")
        self._add("processing.mixer", x_TBCHW, x_TBCHW[:, :, 0].numel() * processing.weight.numel(), taps.double().sum())
        self._add("processing.product", x_TBCHW, x_TBCHW.numel(), x_TBCHW.count_nonzero(), is_binary=False)

    def _add(self, name: str, x: torch.Tensor, macs: int, operations: torch.Tensor, is_binary: bool | None = None) -> None:
        self._calls[name] = call = self._calls.get(name, int(CONTROL in name)) + 1
        others = float(not is_binary) if is_binary is not None else float(((x != 0) & (x != 1)).sum())
        new = [macs, float(x.count_nonzero()), x.numel(), float(operations), others]
        self._sums[name, call] = self._sums[name, call] + torch.tensor(new, dtype=torch.float64)


def _nonzero(x_BCHW: torch.Tensor) -> torch.Tensor:
    """Return the number of channels that are not 0, [B, 1, …]."""
    return (x_BCHW != 0).sum(1, keepdim=True).float()


def _weights_met(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return how many weights meet an input other than 0. Inputs at the border of an image meet fewer."""
    if isinstance(module, nn.Conv2d) and math.prod(module.kernel_size) > 1:
        ones = x.new_ones(1, 1, *module.kernel_size, dtype=torch.float32)
        taps = nn.functional.conv2d(_nonzero(x), ones, None, module.stride, module.padding, module.dilation)
        return taps.double().sum() * module.out_channels
    if isinstance(module, nn.Conv2d) and module.stride != (1, 1):
        x = x[..., :: int(module.stride[0]), :: int(module.stride[1])]
    assert isinstance(module.weight, torch.Tensor)
    return x.count_nonzero() * len(module.weight)
