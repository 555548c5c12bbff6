"""Measures what communication adds to a training step: trainers take turns in the same processes, beside one that sends nothing.

Every rank measures, and the slowest one counts. The order of the candidates rotates from round to round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles

import torch
import torch.distributed as dist

from tdformer.bench.ceilings import synchronize
from tdformer.bench.scaling_candidates import Candidate, ScalingSetting, make_candidate
from tdformer.bench.scaling_names import ALONE

WARM_UP = 2
"""Steps of each candidate that are not measured: the first ones compile kernels, and make buffers."""
SECONDS_TO_SETTLE = 0.05
"""Packets that are still on their way after a step are sent in this time, and do not count for another candidate."""


@dataclass(frozen=True)
class ScalingRow:
    """Medians over the rounds for one candidate."""

    candidate: str
    nodes: int
    ranks: int
    micro_batch: int
    seconds_per_step: float
    added_s: float
    """Seconds that the step takes more than that of `alone` in the same round: communication that is not hidden, and work for it."""
    added_low_s: float
    """The lower quartile of added_s."""
    added_high_s: float
    """The upper quartile of added_s."""
    images_per_s: float
    """Over all ranks."""
    sent_bytes_per_parameter: float | None
    """What rank 0's network interface sent in a step, with the headers of packets. None where the interface was not watched."""


@dataclass
class _Measured:
    candidate: Candidate
    seconds: list[float] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)


def measure(
    names: Sequence[str],
    setting: ScalingSetting,
    nodes: int,
    rounds: int,
    interface: str | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> list[ScalingRow]:
    """Measure the named candidates beside `alone`, which is measured in any case. Collective.

    nodes: over how many machines the ranks lie. interface: the network interface whose bytes are counted.
    progress: it is called with 1 after each of `rounds + WARM_UP` turns of every candidate.
    """
    candidates = {name: _Measured(make_candidate(name, setting)) for name in dict.fromkeys((ALONE, *names))}
    order = list(candidates)
    for number in range(WARM_UP + rounds):
        images_BCHW, labels_B = _batch(setting, number)
        first = number % len(order)
        for name in order[first:] + order[:first]:
            seconds, sent = _timed(candidates[name].candidate, images_BCHW, labels_B, setting, interface)
            if number >= WARM_UP:
                candidates[name].seconds.append(seconds)
                candidates[name].sent.append(sent)
            progress(1)
    return [_row(name, measured, candidates[ALONE], setting, nodes, interface) for name, measured in candidates.items()]


def _timed(
    candidate: Candidate, images_BCHW: torch.Tensor, labels_B: torch.Tensor, setting: ScalingSetting, interface: str | None
) -> tuple[float, int]:
    """Return the seconds of a step on the slowest rank, and the bytes that this rank sent for one.

    It takes two steps and measures the second, which begins while what the first one left is still on its way, as in a run.
    """
    device = setting.context.device
    dist.barrier()
    time.sleep(SECONDS_TO_SETTLE)
    before = _sent_bytes(interface)
    candidate.step(images_BCHW, labels_B)
    _wait_for_computing(device)
    start = time.perf_counter()
    candidate.step(images_BCHW, labels_B)
    _wait_for_computing(device)
    seconds = time.perf_counter() - start
    candidate.settle()
    synchronize(device)
    time.sleep(SECONDS_TO_SETTLE)
    sent = (_sent_bytes(interface) - before) // 2
    return max(setting.context.all_gather(seconds)), sent


def _wait_for_computing(device: torch.device) -> None:
    """Block until the device has computed what was queued. It may still send what was computed."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def _row(name: str, measured: _Measured, alone: _Measured, setting: ScalingSetting, nodes: int, interface: str | None) -> ScalingRow:
    added = [seconds - other for seconds, other in zip(measured.seconds, alone.seconds, strict=True)]
    low, middle, high = quantiles(added, n=4) if len(added) > 1 else (added[0],) * 3
    ranks, micro_batch, seconds = setting.context.world_size, setting.config.training.micro_batch, median(measured.seconds)
    parameters = sum(parameter.numel() for parameter in setting.network().parameters())
    per_parameter = median(measured.sent) / parameters if interface else None
    return ScalingRow(name, nodes, ranks, micro_batch, seconds, middle, low, high, ranks * micro_batch / seconds, per_parameter)


def _batch(setting: ScalingSetting, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random images [B, 3, H, W] and labels [B], others on every rank and in every round."""
    generator = torch.Generator().manual_seed(1000 * number + setting.context.rank)
    size, batch, device = setting.config.data.image_size, setting.config.training.micro_batch, setting.context.device
    images_BCHW = torch.randn(batch, 3, size, size, generator=generator)
    labels_B = torch.randint(0, setting.config.model.num_classes, (batch,), generator=generator)
    return images_BCHW.to(device), labels_B.to(device)


def _sent_bytes(interface: str | None) -> int:
    """Return the bytes that a network interface has sent so far, as Linux counts them. 0 without an interface."""
    if interface is None:
        return 0
    return int(Path(f"/sys/class/net/{interface}/statistics/tx_bytes").read_text())
