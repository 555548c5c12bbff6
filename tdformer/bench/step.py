"""Training steps of our networks and of spikingjelly's QKFormer, in turns in one process, beside what the device can do at most.

They take turns, each starting a round once, so that a machine that slows down slows all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from torch.utils.flop_counter import FlopCounterMode

from tdformer.bench.ceilings import Ceilings, measure_ceilings, wait
from tdformer.bench.contenders import Contender, Setting, make
from tdformer.bench.op_categories import Kind, time_by_category
from tdformer.bench.peak import peak_bytes
from tdformer.bench.reference import REFERENCE
from tdformer.training.model_with_loss import ModelWithLoss

STEPS_PER_TURN = {"cuda": 5, "cpu": 1}
BATCHES = tuple(2**n for n in range(4, 12))
"""Tried on a GPU, until one does not fit."""


@dataclass(frozen=True)
class Row:
    """Medians over the rounds."""

    model: str
    batch: int
    seconds_per_step: float
    seconds_min: float
    seconds_max: float
    images_per_s: float
    ratio_to_peer: float | None
    """Images per second over those of the peer in the same round."""
    peak_mb: float
    """Megabytes (10^6 bytes) of the network's tensors at the step's peak: weights, gradients, moments, activations, workspaces."""
    peak_mb_per_image: float | None
    """By how much that grows with an image."""
    gflops_per_image: float
    """Of forward and backward pass, without recompute."""
    tflops: float
    mfu: float
    """tflops over those of a large matrix product, measured in the same run."""
    shares: dict[Kind, float]
    """Of the step's time."""


def measure(
    setting: Setting, names: Sequence[str], batch: int | None, rounds: int, progress: Callable[[int], None] = lambda done: None
) -> tuple[Ceilings, list[Row]]:
    """batch None: each contender's own fastest, on a GPU. progress is called with 1 after each of rounds + 2 parts of each contender."""
    contenders = [make(name, setting) for name in names]
    for contender in contenders:
        contender.batch = batch or _fastest_batch(contender, setting.device)
        _timed(contender, setting.device)  # compiles and chooses algorithms
        progress(1)
    ceilings = measure_ceilings(setting.device, setting.precision)
    for number in range(rounds):
        for contender in contenders[number % len(contenders) :] + contenders[: number % len(contenders)]:
            contender.seconds.append(_timed(contender, setting.device))
            progress(1)
    rows = []
    for contender in contenders:
        peer = next((other for other in contenders if other.name == REFERENCE), None)
        rows.append(_row(contender, peer, ceilings, setting))
        progress(1)
    return ceilings, rows


def _row(contender: Contender, peer: Contender | None, ceilings: Ceilings, setting: Setting) -> Row:
    speeds = [contender.batch / seconds for seconds in contender.seconds]
    ratios = [speed * seconds / peer.batch for speed, seconds in zip(speeds, peer.seconds, strict=True)] if peer else []
    run, state = partial(contender.step, contender.batch), sum(tensor.nbytes for tensor in contender.state())
    peak = peak_bytes(run, setting.device)
    half = contender.batch // 2
    per_image = (peak - peak_bytes(partial(contender.step, half), setting.device)) / (contender.batch - half) if half else None
    flops = _flops_per_image(contender, setting)
    tflops = flops * median(speeds) / 1e12
    return Row(
        model=contender.name,
        batch=contender.batch,
        seconds_per_step=median(contender.seconds),
        seconds_min=min(contender.seconds),
        seconds_max=max(contender.seconds),
        images_per_s=median(speeds),
        ratio_to_peer=median(ratios) if ratios else None,
        peak_mb=(state + peak) / 1e6,
        peak_mb_per_image=per_image / 1e6 if per_image is not None else None,
        gflops_per_image=flops / 1e9,
        tflops=tflops,
        mfu=tflops / ceilings.matmul_tflops,
        shares=time_by_category(run, contender.network, setting.device),
    )


# --- measuring ----------------------------------------------------------------------------------------------------------


def _timed(contender: Contender, device: torch.device) -> float:
    """Seconds per step."""
    steps = STEPS_PER_TURN[device.type]
    wait(device)
    start = time.perf_counter()
    for _ in range(steps):
        contender.step(contender.batch)
    wait(device)
    return (time.perf_counter() - start) / steps


def _fastest_batch(contender: Contender, device: torch.device) -> int:
    """The number of images at which it is fastest. Raises torch.OutOfMemoryError if none fits."""
    fastest, best = BATCHES[0], 0.0
    for batch in BATCHES:
        contender.batch = batch
        try:
            _timed(contender, device)
            speed = batch / _timed(contender, device)
        except torch.OutOfMemoryError:
            break
        if speed > best:
            fastest, best = batch, speed
    torch.cuda.empty_cache()
    return fastest


def _flops_per_image(contender: Contender, setting: Setting) -> float:
    """Of the network without recompute, counted on two images."""
    unit = contender.network.model if isinstance(contender.network, ModelWithLoss) else None
    policy = unit.recompute if unit else "none"
    if unit:
        unit.recompute = "none"
    with FlopCounterMode(display=False) as counter:
        contender.step(2)
    if unit:
        unit.recompute = policy
    return counter.get_total_flops() / 2
