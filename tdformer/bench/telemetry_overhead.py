"""What it costs to watch a run: training steps with telemetry and without, in turns."""

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
class Watching:
    """Seconds per optimizer step; what telemetry adds, as a share of the step, paired by round: its median and quartiles."""

    clock: str
    """wall, or cpu: the process's own seconds, which other processes disturb less."""
    seconds_per_step: float
    seconds_per_step_watched: float
    added_share: float
    added_share_quartiles: tuple[float, float]


def measure(config: RunConfig, rounds: int, context: DistContext, progress: Callable[[int], None] = lambda done: None) -> list[Watching]:
    """rounds: each is log_every steps without and as many with telemetry, their metrics taken once, on random images."""
    torch.manual_seed(config.seed)
    training = config.training
    model_with_loss = ModelWithLoss(config.model, training.label_smoothing, training.recompute, training.precision).to(context.device)
    engine, telemetry = Engine(model_with_loss, config, context), make_telemetry(config, RunDir(Path()), context)
    times: dict[str, tuple[list[float], list[float]]] = {"wall": ([], []), "cpu": ([], [])}
    _train(config, engine, telemetry)
    for number in range(rounds):
        turns = [(0, Telemetry()), (1, telemetry)]
        for watched, each in turns if number % 2 else turns[::-1]:
            start = time.perf_counter(), time.process_time()
            _train(config, engine, each)
            times["wall"][watched].append((time.perf_counter() - start[0]) / training.log_every)
            times["cpu"][watched].append((time.process_time() - start[1]) / training.log_every)
        progress(1)
    return [_compared(clock, *both) for clock, both in times.items()]


def _train(config: RunConfig, engine: Engine, telemetry: Telemetry) -> None:
    """log_every optimizer steps, marked as the training loop marks them."""
    training, size, device = config.training, config.data.image_size, engine.context.device
    channels = config.model.backbone.in_channels
    frames = (config.model.time_steps,) if channels == 2 else ()
    for step in range(1, training.log_every + 1):
        with telemetry.step(step, engine.model_with_loss):
            images = torch.randn(*frames, training.micro_batch, channels, size, size, device=device)
            labels = torch.zeros(training.micro_batch, dtype=torch.int64, device=device)
            for _ in range(engine.accumulation):
                telemetry.enter("forward")
                engine.micro_step(images, labels)
            telemetry.enter("communication")
            _, norm = engine.reduce()
            telemetry.enter("optimizer")
            engine.optimizer_step(1e-6, norm)
    telemetry.take(1.0)


def _compared(clock: str, plain: list[float], watched: list[float]) -> Watching:
    added = [with_it / without - 1 for without, with_it in zip(plain, watched, strict=True)]
    low, middle, high = quantiles(added, n=4)
    return Watching(clock, quantiles(plain, n=4)[1], quantiles(watched, n=4)[1], middle, (low, high))
