"""What the tests of the analyses share: samples in memory, and a process that is alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.distributed as dist

from tdformer.analysis.samples import Part
from tdformer.distributed.context import DistContext


@contextmanager
def alone() -> Iterator[DistContext]:
    """A context of one process, in which collectives work."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield DistContext(0, 1, torch.device("cpu"))
    finally:
        dist.destroy_process_group()


def parts_of(images: torch.Tensor, batch: int = 8, classes: int = 5) -> list[Part]:
    """Images [N, C, H, W], or event frames [T, N, C, H, W], as the parts that Samples gives. Labels go 0, 1, 2, …"""
    along = images.dim() - 4
    numbers = np.arange(images.shape[along])
    return [
        Part(images.narrow(along, start, len(own)), torch.from_numpy(own % classes), own)
        for start in range(0, len(numbers), batch)
        if len(own := numbers[start : start + batch])
    ]
