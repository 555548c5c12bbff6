"""Estimates what a run needs of every GPU: memory by part, communication per step, and from a measured speed its length.

DeepSpeed is used as training.engine configures it: parameters, gradients and moments are fp32 at every precision.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tdformer.config import RunConfig, TrainingConfig
from tdformer.config.training import ResolvedReduction
from tdformer.estimate.activations import estimate_activations
from tdformer.estimate.traffic import FP32, SUM, Machines, Sent, traffic
from tdformer.training.engine import bucket_elements
from tdformer.training.model_with_loss import ModelWithLoss
from tdformer.training.parameter_gather import MOST_RANKS
from tdformer.training.reduction.exact_gradients import BUCKETS_IN_FLIGHT
from tdformer.training.reduction.reduction import sends_sums

LIVE_PARAMETERS = 10**9
"""Parameters that ZeRO 3 leaves gathered between the forward and the backward pass. It is DeepSpeed's default, and more than these
networks have."""
BACKWARD_SHARE = 2 / 3
"""Part of a step's computing that is its backward pass, without recompute."""
WORKSPACE_BYTES = 10**9
"""Allowance for memory outside the run's tensors: the CUDA context, workspaces of cuDNN and cuBLAS, NCCL's buffers, fragments."""


@dataclass(frozen=True)
class Speed:
    """Says how long a run takes, if no step waits for data."""

    step_s: float
    communication_share: float
    """Share of a step in which nothing is computed."""
    hidden_s: float
    """Seconds of communication per step while something is computed."""
    images_per_s: float
    days: float | None
    """Days of training without evaluations. None if data.train_samples is not given."""


@dataclass(frozen=True)
class Plan:
    """This is the estimate for a run on a number of GPUs."""

    gpus: int
    nodes: int
    global_batch: int
    micro_batch: int
    accumulation: int
    fitting_gpus: list[int]
    """Numbers of GPUs over which the global batch divides."""
    reduction: ResolvedReduction
    """How gradients are summed over the GPUs: training.reduction, or what auto means for so many."""
    memory_bytes: dict[str, int]
    """Memory per GPU by part, in bytes."""
    communication_bytes: dict[str, int]
    """Bytes that each GPU sends (and receives) per optimizer step, by purpose."""
    network_bytes: dict[str, int]
    """Bytes that each node sends to the other nodes per optimizer step, by purpose."""
    speed: Speed | None

    @property
    def total_memory_bytes(self) -> int:
        return sum(self.memory_bytes.values())


@dataclass(frozen=True)
class NetworkSize:
    """Holds what is the same on any number of GPUs."""

    elements: list[int]
    """Elements of each trained parameter."""
    statistics: int
    """Elements of all buffers."""
    activation_bytes: dict[str, int]


def network_size(config: RunConfig) -> NetworkSize:
    """Count what a network has, and run a micro-batch on torch's `meta` device, which takes some seconds."""
    with torch.device("meta"):
        model_with_loss = ModelWithLoss(config.model, config.training.label_smoothing)
    elements = [parameter.numel() for parameter in model_with_loss.parameters() if parameter.requires_grad]
    activations = estimate_activations(config)
    in_bytes = {"activations_kept": activations.kept, "activations_of_a_piece": activations.peak - activations.kept}
    return NetworkSize(elements, sum(buffer.numel() for buffer in model_with_loss.buffers()), in_bytes)


def plan(config: RunConfig, machines: Machines, images_per_s: float | None = None, size: NetworkSize | None = None) -> Plan:
    """Estimate memory, communication and duration of a run.

    images_per_s: measured on one GPU, at the same micro-batch and recompute policy. size: of the network, if it was counted before.
    Raises UserError if the global batch does not divide.
    """
    training, gpus = config.training, machines.gpus
    accumulation, size = training.accumulation(gpus), size or network_size(config)
    auto: ResolvedReduction = "exact" if machines.nodes == 1 else "fast"
    reduction = auto if training.reduction == "auto" else training.reduction
    sent = traffic(training, size.elements, size.statistics, machines, reduction)
    pieces = training.global_batch // training.micro_batch
    return Plan(
        gpus,
        machines.nodes,
        training.global_batch,
        training.micro_batch,
        accumulation,
        [number for number in range(1, pieces + 1) if training.global_batch % (training.micro_batch * number) == 0],
        reduction,
        _state(training, sum(size.elements), size.statistics, gpus, reduction) | size.activation_bytes | {"workspaces": WORKSPACE_BYTES},
        {purpose: one.by_gpu for purpose, one in sent.items()},
        {purpose: one.by_node for purpose, one in sent.items()},
        _speed(config, machines, images_per_s, sent, reduction) if images_per_s else None,
    )


def _state(training: TrainingConfig, parameters: int, statistics: int, gpus: int, reduction: ResolvedReduction) -> dict[str, int]:
    """Return the memory by part before the first image, in bytes."""
    stage, full = training.zero_stage, FP32 * parameters
    share = -(-full // gpus)
    # With overlap_comm, DeepSpeed fills one buffer while it sends another.
    bucket = FP32 * bucket_elements(parameters) * (2 if reduction == "fast" and stage < 3 else 1) if stage else 0
    state = {
        "parameters": share + min(full, FP32 * LIVE_PARAMETERS) if stage == 3 else full,
        "gradients": {0: full, 1: full + share, 2: 2 * share, 3: 2 * share}[stage] + bucket,
        "global_batch_sums": SUM * statistics + (_exact_sums(training, parameters, gpus) if reduction == "exact" else 0),
        "batch_norm_statistics": 2 * FP32 * statistics,  # the moving average also keeps a copy from before the step
        # Two moments, and from ZeRO 1 on the parameters that the optimizer steps.
        "optimizer": 2 * full if stage == 0 else 3 * share,
        "average": (share if stage == 3 else full) + FP32 * statistics if training.ema_decay is not None else 0,
    }
    if training.offload != "none":
        state["optimizer"] = 0
    if training.offload == "all":
        state["parameters"] = 0
    return state


def _exact_sums(training: TrainingConfig, parameters: int, gpus: int) -> int:
    """Return the bytes of ExactGradients: sums and means of a rank's part, means that its optimizer steps, buckets on their way."""
    part, bucket = -(-parameters // gpus), bucket_elements(parameters)
    kept = (SUM + FP32) * part + FP32 * (part if training.zero_stage else parameters)
    on_the_way = (1 + BUCKETS_IN_FLIGHT) * 2 * FP32 * bucket if gpus > 1 else FP32 * bucket
    return kept + on_the_way + (SUM * parameters if sends_sums(training, gpus) else 0)


def _speed(config: RunConfig, machines: Machines, images_per_s: float, sent: dict[str, Sent], reduction: ResolvedReduction) -> Speed:
    training, samples = config.training, config.data.train_samples
    compute_s = training.global_batch / (machines.gpus * images_per_s)
    sending_s = {purpose: machines.seconds(one) for purpose, one in sent.items()}
    room = _room_to_hide(training, machines.gpus, reduction, config.model.segments)
    hidden_s = min(sum(min(seconds, room.get(purpose, 0.0) * compute_s) for purpose, seconds in sending_s.items()), compute_s)
    exposed_s = sum(sending_s.values()) - hidden_s
    step_s = compute_s + exposed_s
    steps = None if samples is None else training.epochs * (samples // training.global_batch)
    days = None if steps is None else steps * step_s / 86_400
    return Speed(step_s, exposed_s / step_s, hidden_s, training.global_batch / step_s, days)


def _room_to_hide(training: TrainingConfig, gpus: int, reduction: ResolvedReduction, segments: int) -> dict[str, float]:
    """Return the part of a step's computing during which a purpose sends. What is not named is sent before or after it.

    The segments share their weights, so that parameters must be there in the forward pass of the first segment, and gradients are complete
    only in its backward pass, which is the last.
    """
    stage, micro_batches = training.zero_stage, training.accumulation(gpus)
    in_each_micro_batch = BACKWARD_SHARE / segments
    of_last_micro_batch = in_each_micro_batch / micro_batches
    room = {}
    if stage in (1, 2) and gpus <= MOST_RANKS:
        room["parameters_all_gather"] = (1 - BACKWARD_SHARE) / segments / micro_batches
    if stage == 3:  # parameters for the next layers, gradients of the last ones; half of the time for each [our choice]
        room["parameters_all_gather"] = 0.5
    if reduction == "exact":
        # Nine tenths of the backward pass for the gradients, one for their means [our choice].
        room["gradients_all_to_all"] = 0.9 * (of_last_micro_batch if sends_sums(training, gpus) else in_each_micro_batch)
        room["means_all_to_all"] = 0.1 * of_last_micro_batch
    elif stage == 3:
        room["gradients_reduce_scatter"] = 0.5
    elif stage:
        room["gradients_reduce"] = of_last_micro_batch if stage == 1 else in_each_micro_batch
    return room
