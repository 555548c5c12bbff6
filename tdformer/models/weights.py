"""Compares tensors with a network's names and shapes before anything is changed, and loads them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from data_pipelines.errors import UnavailableError, UserError
from data_pipelines.storage.passing_trouble import reading_own


class WeightsError(UserError):
    """Says that weights cannot be used."""


@dataclass(frozen=True)
class Match:
    """Holds the names that differ between tensors and a network, in the network's order."""

    used: list[str]
    """Names of both, with the same shape."""
    missing: list[str]
    """Names of the network that are not among the tensors."""
    unused: list[str]
    """Names of tensors that are not in the network."""
    misshapen: list[str]
    """Names in both with different shapes: "name: [shape given], [shape of the network]"."""


def match(expected: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> Match:
    """Compare names and shapes of tensors with those of a network's state dict, `expected`."""
    misshapen = {name for name in expected.keys() & state.keys() if expected[name].shape != state[name].shape}
    return Match(
        used=[name for name in expected if name in state and name not in misshapen],
        missing=[name for name in expected if name not in state],
        unused=sorted(state.keys() - expected.keys()),
        misshapen=[f"{name}: {list(state[name].shape)}, {list(expected[name].shape)}" for name in expected if name in misshapen],
    )


def load_exactly(model: nn.Module, state: Mapping[str, torch.Tensor], what: str) -> None:
    """Load a state dict. Raises WeightsError, in one sentence and before any change, if names or shapes do not fit."""
    check_exactly(model, state, what)
    model.load_state_dict(dict(state))


def check_exactly(model: nn.Module, state: Mapping[str, torch.Tensor], what: str) -> None:
    """Raise WeightsError unless names and shapes are those of the network. `what` begins the sentence."""
    found = match(model.state_dict(), state)
    if found.missing or found.unused:
        raise WeightsError(
            f"{what} is of another model: {len(found.missing)} of this model's tensors are not in it"
            f"{f' (first: {found.missing[0]})' if found.missing else ''} and it holds {len(found.unused)} that this model lacks"
            f"{f' (first: {printable(found.unused[0])})' if found.unused else ''}; use the configuration that it was trained with."
        )
    if found.misshapen:
        raise WeightsError(
            f"{what} is of another model: {len(found.misshapen)} tensors have other shapes (name: its shape, this model's shape; "
            f"first: {found.misshapen[0]}); use the configuration that it was trained with."
        )


def check_sound(state: Mapping[str, torch.Tensor], path: Path) -> None:
    """Raise WeightsError unless every tensor is dense, real, finite, and floating point (BatchNorm's counters aside)."""
    for name, tensor in state.items():
        kind = None
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            kind = f"is not a plain dense tensor ({tensor.layout}, {tensor.device.type})"
        elif name.endswith(".num_batches_tracked"):
            kind = "is no whole number" if tensor.is_floating_point() or tensor.is_complex() else None
        elif not tensor.is_floating_point() or tensor.element_size() < 2:
            kind = f"holds {tensor.dtype}, not floating point numbers"
        elif not tensor.isfinite().all():
            kind = "holds values that are not finite"
        elif name.endswith(".running_var") and (tensor < 0).any():
            kind = "holds a negative variance"
        if kind:
            raise WeightsError(
                f"{path} cannot be used: {printable(name)} {kind}; take another copy, or another checkpoint of its training."
            )


def printable(name: str) -> str:
    """Return a name from a file in a form that is safe to show on a terminal."""
    return name if name.isprintable() else repr(name)


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a file by their names. Raises WeightsError if it is damaged, UnavailableError if it cannot be read now."""
    try:
        with reading_own(path):
            path.open("rb").close()  # safetensors would call any trouble a missing file
            return load_file(path)
    except (OSError, SafetensorError, ValueError) as error:  # UnavailableError is a ValueError
        if isinstance(error, UnavailableError):
            raise
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
        raise WeightsError(f"{path} cannot be read ({reason}); restore it from a copy.") from None
