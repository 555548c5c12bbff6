"""Throughput: images per second, and what training waits for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Throughput:
    """Measures images per second of the training steps, and the share of that time spent waiting for data."""

    def __init__(self) -> None:
        self.images = self.seconds = self.waited = self.stall = 0.0
        self._total_images = self._total_seconds = 0.0

    @contextmanager
    def training(self, images: int) -> Iterator[None]:
        """Count the time inside as an optimizer step on so many images. The wait for data belongs to it."""
        start = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - start
        self.images += images

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as a wait for data. Used inside `training`."""
        start = time.perf_counter()
        yield
        self.waited += time.perf_counter() - start

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Count the time inside as a wait for a checkpoint."""
        start = time.perf_counter()
        yield
        self.stall += time.perf_counter() - start

    def take(self) -> dict[str, float]:
        """Return the metrics since the last call, by name."""
        metrics = {"train/images_per_s": self.images / self.seconds, "train/data_wait_share": self.waited / self.seconds}
        metrics["train/checkpoint_stall_s"] = self.stall
        self._total_images += self.images
        self._total_seconds += self.seconds
        self.images = self.seconds = self.waited = self.stall = 0.0
        return metrics

    def overall(self) -> float:
        """Return images per second since the start of this process; 0 before the first step."""
        seconds = self._total_seconds + self.seconds
        return (self._total_images + self.images) / seconds if seconds else 0.0
