"""The names of what `bench scaling` compares. Imports no torch, so that a wrong name is refused at once."""

from __future__ import annotations

ALONE = "alone"
CANDIDATES = (ALONE, "ddp", "deepspeed-1", "deepspeed-2", "deepspeed-3", "exact-1", "exact-2", "exact-3", "fast-1", "fast-2", "fast-3")
"""alone: every process trains by itself, and sends nothing. ddp: torch's DistributedDataParallel. deepspeed-N: DeepSpeed at ZeRO stage N
with overlap_comm and its default buckets. exact-N and fast-N: the engine of `tdformer train` at ZeRO stage N, by training.reduction."""
