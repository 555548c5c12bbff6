"""TODO."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch

from data_pipelines.config import Channels


@contextmanager
def _one_thread() -> Iterator[None]:
    """More do not help where memory is the limit, and OpenMP's threads wait busily for their next piece, on the loaders' cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _in_huge_pages(shape: torch.Size) -> torch.Tensor:
    """float32, zeros. 64 images of 224 pixels are 9,400 small pages, which would take longer to make than the images to normalise."""
    memory = mmap.mmap(-1, 4 * shape.numel(), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.float32).view(shape)


@dataclass(frozen=True)
class Normalisation:
    """(x / 255 - mean) / std, per channel."""

    mean: Channels
    std: Channels

    def __call__(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """uint8 -> float32, on the images' device. The bits are the same on a whole batch and on each image by itself."""
        if images_BCHW.device.type != "cpu":
            return self._of(images_BCHW.to(torch.float32, memory_format=torch.contiguous_format))
        normalised_BCHW = _in_huge_pages(images_BCHW.shape)
        with _one_thread():
            for image_CHW, normalised_CHW in zip(images_BCHW, normalised_BCHW, strict=True):  # one by one they stay in the core's cache
                self._of(normalised_CHW.copy_(image_CHW.contiguous()))
        return normalised_BCHW

    def _of(self, pixels: torch.Tensor) -> torch.Tensor:
        """pixels: as float32, changed in place."""
        mean_C11, std_C11 = (torch.tensor(values, device=pixels.device).view(-1, 1, 1) for values in (self.mean, self.std))
        return pixels.div_(255).sub_(mean_C11).div_(std_C11)
