"""Formats numbers and values for people. The terminal and the report use the same formats."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from typing import Any

from tdformer.runs.comparison import Spread
from tdformer.runs.config_keys import ABSENT, short_names
from tdformer.runs.paired import Paired

NOTHING = ABSENT
"""The text for a value that does not exist."""


def number(metric: str, value: float | None) -> str:
    """Return the value of a metric as text. Accuracies have two decimals, as in papers."""
    if value is None:
        return NOTHING
    if not math.isfinite(value):
        return str(value)
    return f"{value:.2f}" if "top1" in metric or "top5" in metric else f"{value:.4f}" if "loss" in metric else f"{value:.4g}"


def spread_of(metric: str, found: Spread | None) -> str:
    """Return a mean and its standard deviation, such as 80.50 ± 0.71."""
    if found is None:
        return NOTHING
    return number(metric, found.mean) + (f" ± {number(metric, found.deviation)}" if found.deviation is not None else "")


def paired(metric: str, found: Paired) -> tuple[str, str, str]:
    """Return the mean difference and its two intervals, with signs."""
    return (
        signed(metric, found.mean),
        f"{signed(metric, found.t_low)} to {signed(metric, found.t_high)}",
        f"{signed(metric, found.bootstrap_low)} to {signed(metric, found.bootstrap_high)}",
    )


def signed(metric: str, value: float | None) -> str:
    """Return a difference of a metric with its sign."""
    return NOTHING if value is None else f"{'+' if value >= 0 else '-'}{number(metric, abs(value))}"


def hours(value: float | None) -> str:
    """Return hours as text, with two decimals below 100."""
    return NOTHING if value is None else f"{value:.2f}" if value < 100 else f"{value:,.0f}"


def speed(value: float | None) -> str:
    """Return images per second as text."""
    return NOTHING if value is None else f"{value:.0f}" if value >= 10 else f"{value:.2f}"


def when(seconds: float) -> str:
    """Return a time in seconds since 1970 as a local date and time. Zero is no time."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if seconds else NOTHING


def config_value(value: Any) -> str:
    """Return a value of a configuration as text. Everything but text is written as JSON."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def setting(values: Mapping[str, Any]) -> str:
    """Return the values of a group with short names, such as: base_lr 0.001, control cm1."""
    names = short_names(values)
    return ", ".join(f"{names[key]} {config_value(value)}" for key, value in values.items())


def tag(index: int) -> str:
    """Return the letters of a group by its place: A to Z, then AA, AB, …"""
    letters = ""
    index += 1
    while index:
        index, letter = divmod(index - 1, 26)
        letters = chr(ord("A") + letter) + letters
    return letters


def sparkline(values: list[float], width: int = 60) -> str:
    """Return a curve as text of `width` blocks in eight heights. Values that are not finite become gaps."""
    chosen = [values[index * len(values) // min(width, len(values))] for index in range(min(width, len(values)) - 1)] + values[-1:]
    finite = [value for value in chosen if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    levels = "▁▂▃▄▅▆▇█"
    return "".join(levels[round((value - low) / ((high - low) or 1) * 7)] if math.isfinite(value) else " " for value in chosen)
