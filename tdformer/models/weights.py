"""Comparing a set of tensors with a network's names and shapes, before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from data_pipelines.errors import UserError


class WeightsError(UserError):
    """Weights that cannot be used."""


@dataclass(frozen=True)
class Match:
    """Names in the order of the network."""

    used: list[str]
    missing: list[str]
    """The network's, not in the tensors."""
    unused: list[str]
    """The tensors', not in the network."""
    misshapen: list[str]
    """In both, "name: [shape given], [shape of the network]"."""


def match(model: nn.Module, state: Mapping[str, torch.Tensor]) -> Match:
    expected = model.state_dict()
    misshapen = {name for name in expected.keys() & state.keys() if expected[name].shape != state[name].shape}
    return Match(
        used=[name for name in expected if name in state and name not in misshapen],
        missing=[name for name in expected if name not in state],
        unused=sorted(state.keys() - expected.keys()),
        misshapen=[f"{name}: {list(state[name].shape)}, {list(expected[name].shape)}" for name in expected if name in misshapen],
    )


def load_exactly(model: nn.Module, state: Mapping[str, torch.Tensor], what: str) -> None:
    """load_state_dict, but names and shapes are compared first and told in one sentence."""
    found = match(model, state)
    if found.missing or found.unused:
        raise WeightsError(
            f"{what} is of another model: {len(found.missing)} of this model's tensors are not in it"
            f"{f' (first: {found.missing[0]})' if found.missing else ''} and it holds {len(found.unused)} that this model lacks"
            f"{f' (first: {found.unused[0]})' if found.unused else ''}; use the configuration that it was trained with."
        )
    if found.misshapen:
        raise WeightsError(
            f"{what} is of another model: {len(found.misshapen)} tensors have other shapes (name: its shape, this model's shape; "
            f"first: {found.misshapen[0]}); use the configuration that it was trained with."
        )
    model.load_state_dict(dict(state))


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} cannot be read ({error}); restore it from a copy.") from None
