"""Measures how often neurons fire, from outside the network."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

from tdformer.models.neurons import LIF, ParametricLIF


class FiringRates:
    """Measures mean spikes per neuron and time step in one forward pass, for each part of the network.

    Hooks count spikes between `watch` and `leave`. They read detached tensors and draw no random numbers, so no bit of the pass changes.
    Call `leave` before the backward pass, because activation checkpointing would run, and count, the neurons again.
    """

    def __init__(self) -> None:
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._spikes: dict[str, torch.Tensor] = {}
        self._outputs: dict[str, int] = {}

    def watch(self, model: nn.Module) -> None:
        self._spikes, self._outputs = {}, {}
        for name, module in model.named_modules():
            if isinstance(module, LIF | ParametricLIF):
                self._hooks.append(module.register_forward_hook(self._counting(_stage(name))))

    def leave(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def take(self) -> dict[str, float]:
        """Return the rates of the pass last watched by name. Empty if there was none."""
        rates = {f"firing_rate/{stage}": float(count) / self._outputs[stage] for stage, count in self._spikes.items()}
        self._spikes = {}
        return rates

    def _counting(self, stage: str) -> Any:
        def count(module: nn.Module, inputs: object, spikes_TB: torch.Tensor) -> None:
            counted = spikes_TB.detach().sum(dtype=torch.float32)  # count_nonzero takes five times as long on a CPU
            self._spikes[stage] = self._spikes[stage] + counted if stage in self._spikes else counted
            self._outputs[stage] = self._outputs.get(stage, 0) + spikes_TB.numel()

        return count


PART_OF_STAGE = re.compile(r"backbone\.stages\.(?P<stage>\d+)\.(?P<part>patch_embed|blocks)\.")


def _stage(name: str) -> str:
    """Return the part of the network that a module belongs to, as metrics call it.

    backbone.stages.0.patch_embed.shortcut.neurons -> patch_embed1, backbone.stages.0.blocks.0.attn.q.neurons -> stage1,
    processing.lif -> processing.
    """
    if found := PART_OF_STAGE.match(name):
        return f"{'patch_embed' if found['part'] == 'patch_embed' else 'stage'}{int(found['stage']) + 1}"
    return name.removeprefix("backbone.").partition(".")[0]
