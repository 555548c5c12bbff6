"""What a run sends in one optimizer step: each GPU to the others of its node, and each node to the other nodes.

tests/distributed/test_plan.py holds these bytes to those that are counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from tdformer.config import TrainingConfig
from tdformer.config.training import ResolvedReduction
from tdformer.training.reduction.reduction import sends_sums

FP32, INT64 = 4, 8
DTYPE_BYTES = {"fp32": FP32, "bf16": 2}
SUM = 2 * INT64
"""Bytes of an exact sum."""
STAYS_GATHERED = 100_000
"""ZeRO 3 shards parameters of up to so many elements, and gathers them once after each step. It is DeepSpeed's default."""


@dataclass(frozen=True)
class Machines:
    """The GPUs of a run, and what they send through."""

    gpus: int
    gpus_per_node: int = 8
    gbit_per_s: float = 100.0
    """What a node can send to the other nodes."""
    gbit_per_s_inside: float = 1600.0
    """What a GPU can send to the others of its node. The default is less than NVLink gives on an A100 or a newer GPU [our choice]."""

    @property
    def nodes(self) -> int:
        return -(-self.gpus // self.gpus_per_node)

    def seconds(self, sent: Sent) -> float:
        """Return how long it takes. A collective is cut into pieces, so that both kinds of links work at the same time."""
        return max(8 * sent.by_gpu / (self.gbit_per_s_inside * 1e9), 8 * sent.by_node / (self.gbit_per_s * 1e9))


@dataclass(frozen=True)
class Sent:
    """Bytes of one purpose in one optimizer step."""

    by_gpu: int
    """What each GPU sends."""
    by_node: int
    """What each node sends to other nodes. 0 on one node."""


class Collectives:
    """Counts what collectives over all GPUs send.

    NCCL's rings pass through all GPUs of a node before they leave it, so that each byte leaves a node once. In an all-to-all, each GPU
    sends to each GPU of another node by itself.
    """

    def __init__(self, machines: Machines) -> None:
        self.gpus_per_node = min(machines.gpus, machines.gpus_per_node)
        self._to_others, self._to_other_nodes = (machines.gpus - 1) / machines.gpus, (machines.nodes - 1) / machines.nodes

    def ring(self, size: int, times: float = 1) -> Sent:
        """Gather a tensor of `size` bytes on all GPUs, or scatter or collect the sums of such tensors."""
        passed_on = int(times * size * self._to_others)
        return Sent(passed_on, passed_on if self._to_other_nodes else 0)

    def all_to_all(self, size: float, times: float = 1) -> Sent:
        """Let each GPU send `size` bytes, the same part of them to each GPU."""
        return Sent(int(times * size * self._to_others), int(times * size * self.gpus_per_node * self._to_other_nodes))


def traffic(
    training: TrainingConfig, elements: list[int], statistics: int, machines: Machines, reduction: ResolvedReduction
) -> dict[str, Sent]:
    """Return what is sent per step, by purpose. The last words of a purpose name the collective.

    elements: those of each trained parameter. statistics: elements of all buffers.
    """
    parameters, stage, count = FP32 * sum(elements), training.zero_stage, Collectives(machines)
    micro_batches, own = training.accumulation(machines.gpus), FP32 * sum(elements) / machines.gpus
    sent = {"statistics_all_reduce": count.ring(SUM * statistics, 2), "parameters_all_gather": count.ring(parameters, int(stage in (1, 2)))}
    if stage == 3:
        # Others are gathered in each forward pass, and stay until the backward pass is over, with or without recompute.
        stay = FP32 * sum(number for number in elements if number <= STAYS_GATHERED)
        sent["parameters_all_gather"] = count.ring(stay + micro_batches * (parameters - stay))
    if reduction == "exact":
        of_gradients = SUM // FP32 if sends_sums(training, machines.gpus) else micro_batches
        sent["gradients_all_to_all"] = count.all_to_all(parameters, of_gradients)
        sent["means_all_to_all"] = count.all_to_all({0: parameters, 3: 0}.get(stage, own))
        return sent
    gradients = parameters * DTYPE_BYTES[training.communication_dtype] // FP32
    if stage == 3:
        sent["gradients_reduce_scatter"] = count.ring(gradients, micro_batches)
    elif stage == 0:
        sent["gradients_all_reduce"] = count.ring(gradients, 2)
    else:
        sent["gradients_reduce"] = count.ring(gradients, micro_batches if stage == 2 else 1)
    return sent
