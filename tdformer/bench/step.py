"""Measures training steps of our networks and of the reference, spikingjelly's QKFormer, in one process.

The candidates take turns in every round, so that a machine that slows down slows all of them. The order rotates from round to round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from torch.utils.flop_counter import FlopCounterMode

from tdformer.bench.candidates import Candidate, Setting, make_candidate
from tdformer.bench.ceilings import Ceilings, measure_ceilings, synchronize
from tdformer.bench.op_categories import OpCategory, time_by_category
from tdformer.bench.peak_memory import peak_bytes
from tdformer.bench.reference import REFERENCE
from tdformer.training.model_with_loss import ModelWithLoss

STEPS_PER_MEASUREMENT = {"cuda": 5, "cpu": 1}
BATCHES = tuple(2**n for n in range(4, 12))
"""Batch sizes that are tried on a GPU, until one does not fit into its memory."""


@dataclass(frozen=True)
class Row:
    """Medians over the rounds for one candidate."""

    model: str
    batch: int
    seconds_per_step: float
    seconds_min: float
    seconds_max: float
    images_per_s: float
    ratio_to_reference: float | None
    """Images per second, divided by those of the reference in the same round. None if the reference was not measured."""
    peak_mb: float
    """Peak of allocated megabytes (10^6 bytes) in a step: weights, gradients, moments, activations and workspaces."""
    peak_mb_per_image: float | None
    """Growth of peak_mb for each image that is added to the batch. None for a batch of one."""
    gflops_per_image: float
    """FLOPs of forward and backward pass in units of 10^9, without those of recomputation."""
    tflops: float
    mfu: float
    """Model FLOPs utilisation: tflops divided by those of a large matrix product, which is measured in the same run."""
    shares: dict[OpCategory, float]
    """Share of each category of operations in the time of a step."""


def measure(
    setting: Setting, names: Sequence[str], batch: int | None, rounds: int, progress: Callable[[int], None] = lambda done: None
) -> tuple[Ceilings, list[Row]]:
    """Measure the named candidates, and return the ceilings of the device and one row per candidate.

    batch: None chooses the fastest batch of each candidate, which is for GPUs alone.
    progress: it is called with 1 after each of `rounds + 2` parts of every candidate.
    Raises torch.OutOfMemoryError if a candidate does not fit.
    """
    candidates = [make_candidate(name, setting) for name in names]
    for candidate in candidates:
        candidate.batch = batch or _fastest_batch(candidate, setting.device)
        _timed(candidate, setting.device)  # The first steps compile kernels and choose algorithms.
        progress(1)
    ceilings = measure_ceilings(setting.device, setting.precision)
    for number in range(rounds):
        for candidate in candidates[number % len(candidates) :] + candidates[: number % len(candidates)]:
            candidate.seconds.append(_timed(candidate, setting.device))
            progress(1)
    rows = []
    for candidate in candidates:
        reference = next((other for other in candidates if other.name == REFERENCE), None)
        rows.append(_row(candidate, reference, ceilings, setting))
        progress(1)
    return ceilings, rows


def _row(candidate: Candidate, reference: Candidate | None, ceilings: Ceilings, setting: Setting) -> Row:
    speeds = [candidate.batch / seconds for seconds in candidate.seconds]
    ratios = [speed * seconds / reference.batch for speed, seconds in zip(speeds, reference.seconds, strict=True)] if reference else []
    run, state = partial(candidate.step, candidate.batch), sum(tensor.nbytes for tensor in candidate.state())
    peak = peak_bytes(run, setting.device)
    half = candidate.batch // 2
    per_image = (peak - peak_bytes(partial(candidate.step, half), setting.device)) / (candidate.batch - half) if half else None
    flops = _flops_per_image(candidate, setting)
    tflops = flops * median(speeds) / 1e12
    return Row(
        model=candidate.name,
        batch=candidate.batch,
        seconds_per_step=median(candidate.seconds),
        seconds_min=min(candidate.seconds),
        seconds_max=max(candidate.seconds),
        images_per_s=median(speeds),
        ratio_to_reference=median(ratios) if ratios else None,
        peak_mb=(state + peak) / 1e6,
        peak_mb_per_image=per_image / 1e6 if per_image is not None else None,
        gflops_per_image=flops / 1e9,
        tflops=tflops,
        mfu=tflops / ceilings.matmul_tflops,
        shares=time_by_category(run, candidate.network, setting.device),
    )


def _timed(candidate: Candidate, device: torch.device) -> float:
    """Return the seconds per step, over STEPS_PER_MEASUREMENT steps."""
    steps = STEPS_PER_MEASUREMENT[device.type]
    synchronize(device)
    start = time.perf_counter()
    for _ in range(steps):
        candidate.step(candidate.batch)
    synchronize(device)
    return (time.perf_counter() - start) / steps


def _fastest_batch(candidate: Candidate, device: torch.device) -> int:
    """Return the batch size with the most images per second."""
    fastest, best = BATCHES[0], 0.0
    for batch in BATCHES:
        candidate.batch = batch
        try:
            _timed(candidate, device)
            speed = batch / _timed(candidate, device)
        except torch.OutOfMemoryError:
            break
        if speed > best:
            fastest, best = batch, speed
    torch.cuda.empty_cache()
    return fastest


def _flops_per_image(candidate: Candidate, setting: Setting) -> float:
    """Count the FLOPs of a step on two images without recomputation, and return half of them."""
    unit = candidate.network.model if isinstance(candidate.network, ModelWithLoss) else None
    policy = unit.recompute if unit else "none"
    if unit:
        unit.recompute = "none"
    with FlopCounterMode(display=False) as counter:
        candidate.step(2)
    if unit:
        unit.recompute = policy
    return counter.get_total_flops() / 2
