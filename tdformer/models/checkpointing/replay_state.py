"""ReplayState: everything besides its inputs that a run of a module depends on, so that it can run twice alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
CHANGED = (
    "the network was changed between the forward and the backward pass (weights, requires_grad or structure), so that recompute "
    "would give wrong gradients; change it after the backward pass, or use the recompute policy none"
)


class ReplayState:
    """Remembers train/eval modes, autocast and random state of a run, and checks that the weights are the same."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.training = [part.training for part in module.modules()]
        self.weights = [(parameter, parameter._version) for parameter in module.parameters()]
        self.device = next((buffer.device for buffer in module.buffers()), torch.device("cpu"))
        self.kind = kind = self.device.type if self.device.type != "meta" else "cpu"  # autocast does not know the meta device
        self.autocast = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind), torch.is_autocast_cache_enabled()
        self.random_state: list[torch.Tensor] | None = None

    @contextmanager
    def recording_rng(self) -> Iterator[None]:
        """Run the module inside for the first time. If it draws random numbers, the random state from before is kept."""
        before = _random_state(self.device)
        yield
        if any(not torch.equal(old, new) for old, new in zip(before, _random_state(self.device), strict=True)):
            self.random_state = before

    @contextmanager
    def again(self) -> Iterator[None]:
        """Run the module inside again: as it was, and without a change to BatchNorm's statistics.

        Raises RuntimeError if the weights have changed.
        """
        now = list(self.module.parameters())
        if len(now) != len(self.weights) or any(
            parameter is not own or parameter._version != version for own, (parameter, version) in zip(now, self.weights, strict=True)
        ):
            raise RuntimeError(CHANGED)
        with (
            torch.autocast(self.kind, *self.autocast),
            _modes_of(self.module, self.training),
            _statistics_left_alone(self.module),
            _random_state_of(self.device, self.random_state),
        ):
            yield


@contextmanager
def _modes_of(module: nn.Module, training: list[bool]) -> Iterator[None]:
    now = [part.training for part in module.modules()]

    def set_modes(modes: list[bool]) -> None:
        for part, mode in zip(module.modules(), modes, strict=True):
            part.training = mode

    set_modes(training)
    try:
        yield
    finally:
        set_modes(now)


def _random_state(device: torch.device) -> list[torch.Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _set_random_state(device: torch.device, state: list[torch.Tensor]) -> None:
    torch.set_rng_state(state[0])
    for of_device in state[1:]:
        torch.cuda.set_rng_state(of_device, device)


@contextmanager
def _random_state_of(device: torch.device, state: list[torch.Tensor] | None) -> Iterator[None]:
    if state is None:
        yield
        return
    now = _random_state(device)
    _set_random_state(device, state)
    try:
        yield
    finally:
        _set_random_state(device, now)


@contextmanager
def _statistics_left_alone(module: nn.Module) -> Iterator[None]:
    tracking = [part for part in module.modules() if isinstance(part, BATCH_NORMS) and part.track_running_stats]
    for part in tracking:
        part.track_running_stats = False
    try:
        yield
    finally:
        for part in tracking:
            part.track_running_stats = True
