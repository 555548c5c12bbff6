"""Telemetry: measures training steps while they run, and changes no bit of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from tdformer.config import RunConfig
from tdformer.distributed.context import DistContext
from tdformer.rundir.run_dir import RunDir
from tdformer.training.model_with_loss import ModelWithLoss
from tdformer.training.telemetry.firing_rates import FiringRates
from tdformer.training.telemetry.stopwatch import Part, Stopwatch
from tdformer.training.telemetry.traces import Traces
from tdformer.training.telemetry.utilisation import Utilisation, peak_memory_mb


class Telemetry:
    """Measures nothing. This is what all ranks but rank 0 use."""

    @contextmanager
    def step(self, step: int, model_with_loss: ModelWithLoss) -> Iterator[None]:
        """Measure one optimizer step inside, its wait for data included."""
        yield

    def enter(self, part: Part) -> None:
        """Note that the next part of the step begins. Backward passes are noted automatically."""

    def take(self, images_per_s: float) -> dict[str, float]:
        """Return the metrics since the last call, by name. Called at every log_every-th step."""
        return {}

    def close(self) -> None:
        """End the measurements after the last step."""


class Rank0Telemetry(Telemetry):
    """Measures times, firing rates, utilisation and memory, and records traces."""

    def __init__(self, config: RunConfig, run_dir: RunDir, context: DistContext) -> None:
        self._log_every, self._device = config.training.log_every, context.device
        self._stopwatch, self._firing = Stopwatch(context.device), FiringRates()
        self._traces = Traces(config.profiling.trace_steps, run_dir.traces)
        self._utilisation = Utilisation(config, context.device, context.world_size)

    @contextmanager
    def step(self, step: int, model_with_loss: ModelWithLoss) -> Iterator[None]:
        self._traces.begin_step(step)
        self._stopwatch.enter("data_wait")
        if step % self._log_every == 0:
            self._firing.watch(model_with_loss.model)
        hook = model_with_loss.register_forward_hook(self._forward_is_done)
        try:
            yield
        finally:
            hook.remove()
            self._firing.leave()
            self._stopwatch.end_step()
        self._traces.end_step(step)

    def enter(self, part: Part) -> None:
        self._stopwatch.enter(part)

    def take(self, images_per_s: float) -> dict[str, float]:
        memory = {"train/peak_memory_mb": peak_memory_mb(self._device)}
        return self._stopwatch.take() | self._utilisation.at(images_per_s) | memory | self._firing.take()

    def close(self) -> None:
        self._traces.close()

    def _forward_is_done(self, *_: nn.Module | object) -> None:
        self._stopwatch.enter("backward")
        self._firing.leave()  # of the first micro-batch alone, and before recompute runs neurons again


def make_telemetry(config: RunConfig, run_dir: RunDir, context: DistContext) -> Telemetry:
    """Return the telemetry of this rank."""
    return Rank0Telemetry(config, run_dir, context) if context.is_rank0 else Telemetry()
