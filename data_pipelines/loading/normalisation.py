"""Normalises batches of images."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache

import torch

from data_pipelines.config import Channels


@dataclass(frozen=True)
class Normalisation:
    """Computes (x / 255 - mean) / std per channel."""

    mean: Channels
    std: Channels

    def __call__(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Normalise uint8 images to float32, on their device. An image gets the same bits alone and in a batch."""
        if images_BCHW.device.type != "cpu":
            return self._normalise(images_BCHW.to(torch.float32, memory_format=torch.contiguous_format))
        normalised_BCHW = _zeros_in_huge_pages(images_BCHW.shape)
        with _one_thread():
            for image_CHW, normalised_CHW in zip(images_BCHW, normalised_BCHW, strict=True):  # one image fits the core's cache
                self._normalise(normalised_CHW.copy_(image_CHW.contiguous()))
        return normalised_BCHW

    def _normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalise float32 pixels in place."""
        mean_C11, std_C11 = (_on_device(values, pixels.device) for values in (self.mean, self.std))
        return pixels.div_(255).sub_(mean_C11).div_(std_C11)


@cache
def _on_device(values: Channels, device: torch.device) -> torch.Tensor:
    """Return values of channels as [C, 1, 1]. They stay on the device: copying them there makes the host wait for it."""
    return torch.tensor(values, device=device).view(-1, 1, 1)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute with one thread. Memory is the limit here, and idle OpenMP threads would keep the loaders' cores busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _zeros_in_huge_pages(shape: torch.Size) -> torch.Tensor:
    """Allocate float32 zeros in huge pages. 64 images of 224 pixels need 9,400 small pages, which cost more than normalising."""
    memory = mmap.mmap(-1, 4 * shape.numel(), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # some kernels have no huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.float32).view(shape)
