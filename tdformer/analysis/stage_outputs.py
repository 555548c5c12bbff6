"""Records what the stages of a network put out at every time step, from outside the network."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from tdformer.models.backbones.base import Stage
from tdformer.models.tdformer import TDFormer


class StageOutputs:
    """Collects H(t) of each stage in one forward pass. The last stage's are the network's features.

    Use a network without activation checkpointing, which runs stages twice.
    """

    def __init__(self, model: TDFormer) -> None:
        self._ends = {f"stage{number}": _end(stage) for number, stage in enumerate(model.backbone.stages, start=1)}
        self._segments: dict[str, list[torch.Tensor]] = defaultdict(list)

    @property
    def names(self) -> list[str]:
        return list(self._ends)

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Record the forward pass inside."""
        self._segments.clear()
        hooks = [end.register_forward_hook(self._recording(name)) for name, end in self._ends.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def take(self) -> dict[str, torch.Tensor]:
        """Return the outputs of the recorded pass by stage, [T, B, C, H, W], all segments in a row."""
        return {name: torch.cat(segments) for name, segments in self.take_segments().items()}

    def take_segments(self) -> dict[str, list[torch.Tensor]]:
        """Return them as the pass made them: one tensor for each segment."""
        segments = {name: self._segments[name] for name in self._ends}
        self._segments = defaultdict(list)
        return segments

    def _recording(self, name: str) -> Any:
        def record(module: nn.Module, inputs: object, output_TBCHW: torch.Tensor) -> None:
            self._segments[name].append(output_TBCHW)

        return record


def _end(stage: Stage) -> nn.Module:
    *_, last = (stage.patch_embed, *stage.blocks)
    return last
