"""Measures the overhead of telemetry: training steps with it and without it alternate."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles

import torch

from tdformer.config import RunConfig
from tdformer.distributed.context import DistContext
from tdformer.rundir.run_dir import RunDir
from tdformer.training.engine import Engine
from tdformer.training.model_with_loss import ModelWithLoss
from tdformer.training.telemetry.telemetry import Telemetry, make_telemetry


@dataclass(frozen=True)
class TelemetryOverhead:
    """Median seconds per optimizer step without and with telemetry, and the share of the step that telemetry adds.

    The added share is computed for each pair of neighbouring measurements. Its median and its quartiles are given.
    """

    clock: str
    """`wall`, or `cpu`: the CPU seconds of this process, which other processes disturb less."""
    seconds_per_step: float
    seconds_per_step_with_telemetry: float
    added_share: float
    added_share_quartiles: tuple[float, float]


def measure(
    config: RunConfig, rounds: int, context: DistContext, progress: Callable[[int], None] = lambda done: None
) -> list[TelemetryOverhead]:
    """Train on random images, and return one row per clock.

    Each round is `training.log_every` steps without telemetry and as many with it. Its metrics are read once per round.
    `progress` is called with 1 after each round.
    """
    torch.manual_seed(config.seed)
    training = config.training
    model_with_loss = ModelWithLoss(config.model, training.label_smoothing, training.recompute, training.precision).to(context.device)
    engine, telemetry = Engine(model_with_loss, config, context), make_telemetry(config, RunDir(Path()), context)
    times: dict[str, tuple[list[float], list[float]]] = {"wall": ([], []), "cpu": ([], [])}
    _train(config, engine, telemetry)
    for number in range(rounds):
        order = [(0, Telemetry()), (1, telemetry)]
        for is_on, each in order if number % 2 else order[::-1]:
            start = time.perf_counter(), time.process_time()
            _train(config, engine, each)
            times["wall"][is_on].append((time.perf_counter() - start[0]) / training.log_every)
            times["cpu"][is_on].append((time.process_time() - start[1]) / training.log_every)
        progress(1)
    return [_overhead(clock, *both) for clock, both in times.items()]


def _train(config: RunConfig, engine: Engine, telemetry: Telemetry) -> None:
    """Run `log_every` optimizer steps, with the same calls to telemetry as in the training loop."""
    training, size, device = config.training, config.data.image_size, engine.context.device
    channels = config.model.backbone.in_channels
    frames = (config.model.time_steps,) if channels == 2 else ()
    for step in range(1, training.log_every + 1):
        with telemetry.step(step, engine.model_with_loss):
            images = torch.randn(*frames, training.micro_batch, channels, size, size, device=device)
            labels = torch.zeros(training.micro_batch, dtype=torch.int64, device=device)
            for _ in range(training.accumulation(engine.context.world_size)):
                telemetry.enter("forward")
                engine.micro_step(images, labels)
            telemetry.enter("communication")
            engine.reduce()
            telemetry.enter("optimizer")
            engine.optimizer_step(1e-6)
    telemetry.take(1.0)


def _overhead(clock: str, without: list[float], with_it: list[float]) -> TelemetryOverhead:
    added = [second / first - 1 for first, second in zip(without, with_it, strict=True)]
    low, middle, high = quantiles(added, n=4)
    return TelemetryOverhead(clock, quantiles(without, n=4)[1], quantiles(with_it, n=4)[1], middle, (low, high))
