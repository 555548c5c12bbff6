"""Notices GPUs that a run could use and does not."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from tdformer.distributed.context import DistContext


@dataclass(frozen=True)
class Place:
    """Says where one rank computes: on which host and GPU, and which GPUs it could use there. A GPU has the same name for all ranks."""

    host: str
    used: str
    visible: tuple[str, ...]


def notes_on_idle_gpus(context: DistContext) -> list[str]:
    """Return a note for the user if GPUs of the run's nodes compute nothing. Collective."""
    return note(context.all_gather(_this_place(context.device))) if context.device.type == "cuda" else []


def note(places: Iterable[Place]) -> list[str]:
    """Return a note on the host that shows the most GPUs more than the ranks there use, if any does."""
    visible: dict[str, set[str]] = {}
    used: dict[str, set[str]] = {}
    for place in places:
        visible.setdefault(place.host, set()).update(place.visible)
        used.setdefault(place.host, set()).add(place.used)
    host = max(visible, key=lambda host: len(visible[host] - used[host]))
    if not (idle := len(visible[host] - used[host])):
        return []
    return [
        f"{idle} of the {len(visible[host])} GPUs that {host} shows compute nothing for this run; start one process for each: with "
        f"--processes {len(visible[host])}, or with as many tasks of srun or torchrun per node."
    ]


def _this_place(device: torch.device) -> Place:
    names = tuple(str(torch.cuda.get_device_properties(index).uuid) for index in range(torch.cuda.device_count()))
    return Place(socket.gethostname(), names[device.index or 0], names)
