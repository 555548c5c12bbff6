"""Training steps of our networks and of spikingjelly's QKFormer, in turns in one process, beside what the device can do at most.

A step is what a user's step is: forward pass, loss, backward pass, AdamW. All contenders are given the same images, precision and
optimizer. They take turns, each starting a round once, so that a machine that slows down slows all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from data_pipelines.config import DataConfig
from data_pipelines.errors import UserError
from tdformer.bench.kinds import Kind, optimizing, shares_by_kind
from tdformer.bench.peak import peak_bytes
from tdformer.bench.peer import PEER, make_peer
from tdformer.config import FeedbackConfig, Kernels, ModelConfig, Precision, RecomputePolicy, RunConfig, TrainingConfig
from tdformer.config_io import checked
from tdformer.ranks import Ranks
from tdformer.training.engine import Engine
from tdformer.training.kernels import choose_kernels
from tdformer.training.objective import Objective, autocast

CONTENDERS = ("backbone", "tdformer", PEER, "tdformer-recompute", "tdformer-engine")
"""tdformer-recompute: under the recompute policy block_segment. tdformer-engine: as `tdformer train` runs it, under DeepSpeed and with
gradients and statistics added exactly; the others are trained by a plain loop."""
STEPS_PER_TURN = {"cuda": 5, "cpu": 1}
BATCHES = tuple(2**n for n in range(4, 12))
"""Tried on a GPU, until one does not fit."""


def network(embed_dims: int, image_size: int, time_steps: int, segments: int) -> ModelConfig:
    """HST-10 with so many channels, feedback in all blocks of its last stage. Raises UserError for sizes that do not fit."""
    if embed_dims % 64:
        raise UserError(f"--embed-dims must be a multiple of 64, as heads have 64 channels, got {embed_dims}")
    if image_size % 16:
        raise UserError(f"--image-size must be a multiple of 16, the network's stride, got {image_size}")
    backbone = {"embed_dims": embed_dims, "num_heads": embed_dims // 64, "depths": (1, 2, 7)}
    return checked(ModelConfig, {"backbone": backbone, "time_steps": time_steps, "segments": segments}, "no such network")


@dataclass(frozen=True)
class Setting:
    """What all contenders have in common. model: that of tdformer, whose backbone is the others'."""

    model: ModelConfig
    image_size: int
    precision: Precision
    kernels: Kernels
    ranks: Ranks

    @property
    def device(self) -> torch.device:
        return self.ranks.device


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


@dataclass(frozen=True)
class Ceilings:
    """What the device reaches at most: a large matrix product at the precision, and a large copy (bytes read and written)."""

    matmul_tflops: float
    copy_gb_per_s: float


@dataclass
class Contender:
    """One network, and a training step of it on a number of images."""

    name: str
    network: nn.Module
    step: Callable[[int], object]
    state: Callable[[], list[torch.Tensor]]
    """What stays in memory between two steps."""
    batch: int = 0
    seconds: list[float] = field(default_factory=list)
    """Per step, of each round."""


def measure(
    setting: Setting, names: Sequence[str], batch: int | None, rounds: int, progress: Callable[[int], None] = lambda done: None
) -> tuple[Ceilings, list[Row]]:
    """batch None: each contender's own fastest, on a GPU. progress is called with 1 after each of rounds + 2 parts of each contender."""
    contenders = [_make(name, setting) for name in names]
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
        peer = next((other for other in contenders if other.name == PEER), None)
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
        shares=shares_by_kind(run, contender.network, setting.device),
    )


# --- the contenders -----------------------------------------------------------------------------------------------------


def _make(name: str, setting: Setting) -> Contender:
    torch.manual_seed(0)
    if name == PEER:
        network = make_peer(setting.model, setting.model.time_steps).to(setting.device)
        return _plain_loop(name, network, partial(_peers_loss, network, setting), setting)
    feedback, segments = (None, 1) if name == "backbone" else (setting.model.feedback or FeedbackConfig(), setting.model.segments)
    model = setting.model.model_copy(update={"feedback": feedback, "segments": segments, "loss_weights": None})
    policy: RecomputePolicy = "block_segment" if name == "tdformer-recompute" else "none"
    objective = Objective(model, label_smoothing=0.0, recompute=policy, precision=setting.precision).to(setting.device)
    choose_kernels(objective.model, setting.kernels, setting.ranks)
    if name == "tdformer-engine":
        return _under_engine(name, objective, model, setting)
    return _plain_loop(name, objective, objective, setting)


def _plain_loop(name: str, network: nn.Module, loss: Callable[..., torch.Tensor], setting: Setting) -> Contender:
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-6, fused=True)
    batches = _Batches(setting)

    def step(batch: int) -> None:
        loss(*batches.of(batch)).backward()
        with optimizing():
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def state() -> list[torch.Tensor]:
        moments = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
        return [*network.parameters(), *network.buffers(), *moments]

    return Contender(name, network, step, state)


def _peers_loss(network: nn.Module, setting: Setting, images_BCHW: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
    from spikingjelly.activation_based.functional import reset_net

    reset_net(network)
    with autocast(setting.device, setting.precision):
        logits_BK = network(images_BCHW)
    return nn.functional.cross_entropy(logits_BK.float(), labels_B)


def _under_engine(name: str, objective: Objective, model: ModelConfig, setting: Setting) -> Contender:
    training = TrainingConfig(global_batch=2, micro_batch=2, precision=setting.precision, kernels=setting.kernels, label_smoothing=0.0)
    config = RunConfig(name=name, data=DataConfig(train="none", val="none", image_size=setting.image_size), model=model, training=training)
    engine, batches = Engine(objective, config, setting.ranks), _Batches(setting)

    def step(batch: int) -> None:
        engine.micro_step(*batches.of(batch))
        _, norm = engine.reduce()
        with optimizing():
            engine.apply(1e-6, norm)

    def state() -> list[torch.Tensor]:
        kept = [engine.global_batch._sums, *objective.parameters(), *objective.buffers()]
        return [*kept, *(moment for moments in engine._stepping.state.values() for moment in moments.values() if moment.dim())]

    return Contender(name, objective, step, state)


class _Batches:
    """The same random images for all contenders, on the device."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self._made: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def of(self, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        if batch not in self._made:
            self._made.clear()
            setting, generator = self.setting, torch.Generator().manual_seed(batch)
            shape = (batch, setting.model.backbone.in_channels, setting.image_size, setting.image_size)
            images_BCHW = torch.randn(shape, generator=generator)
            labels_B = torch.randint(setting.model.num_classes, (batch,), generator=generator)
            self._made[batch] = images_BCHW.to(setting.device), labels_B.to(setting.device)
        return self._made[batch]


# --- measuring ----------------------------------------------------------------------------------------------------------


def _timed(contender: Contender, device: torch.device) -> float:
    """Seconds per step, after one that is not counted if the number of images is new."""
    steps = STEPS_PER_TURN[device.type]
    _wait(device)
    start = time.perf_counter()
    for _ in range(steps):
        contender.step(contender.batch)
    _wait(device)
    return (time.perf_counter() - start) / steps


def _fastest_batch(contender: Contender, device: torch.device) -> int:
    fastest, best = 0, 0.0
    for batch in BATCHES:
        contender.batch = batch
        try:
            _timed(contender, device)
            speed = batch / _timed(contender, device)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            break
        if speed > best:
            fastest, best = batch, speed
    return fastest


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _flops_per_image(contender: Contender, setting: Setting) -> float:
    """Of the network without recompute, counted on two images."""
    unit = contender.network.model if isinstance(contender.network, Objective) else None
    policy = unit.recompute if unit else "none"
    if unit:
        unit.recompute = "none"
    with FlopCounterMode(display=False) as counter:
        contender.step(2)
    if unit:
        unit.recompute = policy
    return counter.get_total_flops() / 2


def measure_ceilings(device: torch.device, precision: Precision) -> Ceilings:
    on_gpu = device.type == "cuda"
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    n, values = (8192, 2**28) if on_gpu else (2048, 2**26)
    left, right = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    as_images = left.view(1, n, n, 1).permute(0, 2, 1, 3).contiguous(memory_format=torch.channels_last)
    products = [
        partial(torch.mm, left, right),
        partial(nn.functional.conv2d, as_images, right.view(n, n, 1, 1)),  # oneDNN's product: on some CPUs twice as fast as BLAS's
    ]
    source = torch.randn(values, device=device)
    target = torch.empty_like(source)
    seconds = min(_best_time(product, device) for product in products)
    return Ceilings(2 * n**3 / seconds / 1e12, 2 * source.nbytes / _best_time(partial(target.copy_, source), device) / 1e9)


def _best_time(action: Callable[[], object], device: torch.device, times: int = 10) -> float:
    seconds = []
    for _ in range(times):
        _wait(device)
        start = time.perf_counter()
        action()
        _wait(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)
