"""Numbers as people read them: the same on a terminal and in the report."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from typing import Any

from tdformer.runs.comparing import Spread
from tdformer.runs.configs import ABSENT, short_names

NOTHING = ABSENT


def number(metric: str, value: float | None) -> str:
    """Accuracies with two decimals, as papers have them."""
    if value is None:
        return NOTHING
    if not math.isfinite(value):
        return str(value)
    return f"{value:.2f}" if "top1" in metric or "top5" in metric else f"{value:.4f}" if "loss" in metric else f"{value:.4g}"


def spread_of(metric: str, found: Spread | None) -> str:
    if found is None:
        return NOTHING
    return number(metric, found.mean) + (f" ± {number(metric, found.deviation)}" if found.deviation is not None else "")


def hours(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2f}" if value < 100 else f"{value:,.0f}"


def speed(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.0f}" if value >= 10 else f"{value:.2f}"


def when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if seconds else NOTHING


def config_value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def setting(values: Mapping[str, Any]) -> str:
    """ "base_lr 0.001, control cm1" """
    names = short_names(values)
    return ", ".join(f"{names[key]} {config_value(value)}" for key, value in values.items())


def tag(index: int) -> str:
    """A to Z, then AA, AB, …"""
    letters = ""
    index += 1
    while index:
        index, letter = divmod(index - 1, 26)
        letters = chr(ord("A") + letter) + letters
    return letters


def sparkline(values: list[float], width: int = 60) -> str:
    """Eight heights of a block, lowest to highest; values that are not finite are gaps."""
    chosen = [values[index * len(values) // min(width, len(values))] for index in range(min(width, len(values)) - 1)] + values[-1:]
    finite = [value for value in chosen if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    levels = "▁▂▃▄▅▆▇█"
    return "".join(levels[round((value - low) / ((high - low) or 1) * 7)] if math.isfinite(value) else " " for value in chosen)
