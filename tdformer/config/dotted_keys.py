"""Compares configurations by their dotted keys, such as `training.epochs`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel


def flatten(config: BaseModel) -> dict[str, Any]:
    """Return each value under its dotted key, such as {"training.epochs": 15, …}."""
    flat: dict[str, Any] = {}

    def visit(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, child in value.items():
                visit(f"{prefix}.{key}" if prefix else key, child)
        else:
            flat[prefix] = value

    visit("", config.model_dump(mode="json"))
    return flat


def is_within(key: str, keys: Iterable[str]) -> bool:
    """Tell whether a dotted key is one of these keys, or lies in a section that is one of them."""
    return any(key == other or key.startswith(f"{other}.") for other in keys)


def differences(old: BaseModel, new: BaseModel) -> list[str]:
    """Return one line for each dotted key whose value differs: `key: old -> new`."""
    before, after = flatten(old), flatten(new)
    keys = sorted(before.keys() | after.keys())
    return [f"{key}: {before.get(key)} -> {after.get(key)}" for key in keys if before.get(key) != after.get(key)]
