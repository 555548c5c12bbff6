"""Draws curves and points as SVG, without a dependency or a script. 500 runs take a tenth of a second.

Colours are CSS classes of the page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, HEIGHT = 560, 320
LEFT, RIGHT, TOP, BOTTOM = 52, 34, 12, 40
IGNORED_START = 0.4
"""The share at the start of a learning curve that does not count for the range of the axis. Otherwise the ends of all would look equal."""


@dataclass(frozen=True)
class Curve:
    """The points (x, y) of one run, or of the mean of a group."""

    points: Sequence[tuple[float, float]]
    tag: str
    """The letter of the group."""
    style: str
    """The CSS class of the colour."""
    title: str
    is_mean: bool = False
    """True for the mean of a group. It is drawn above the runs, with the letter of the group at its end."""


@dataclass(frozen=True)
class Scale:
    """A linear map from the values low..high to the pixels start..end."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    @property
    def ticks(self) -> list[float]:
        """Round numbers within the scale. Their distance is 1, 2 or 5 times a power of ten."""
        rough = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [number * step for number in range(first, last + 1)]


def scale(values: Sequence[float], start: float, end: float, margin: float = 0.05) -> Scale:
    """Return a scale that shows all values with a margin, also if they are all equal. The margin is a share of their range."""
    low, high = min(values), max(values)
    room = (high - low) * margin or abs(high) * 0.05 or 1.0
    return Scale(low - room, high + room, start, end)


def curves(lines: Sequence[Curve], x_label: str, ignored_start: float = 0.0) -> Markup | None:
    """Draw curves over a common axis. Return None if there is nothing to draw.

    ignored_start: the share at the start of each curve that does not count for the range of the axis.
    """
    lines = [line for line in map(_finite, lines) if line.points]
    if not lines:
        return None
    deciding = [y for line in lines for _, y in line.points[int(len(line.points) * ignored_start) :]]
    xs = [x for line in lines for x, _ in (line.points[0], line.points[-1])]
    across = Scale(min(xs), max(xs), LEFT, WIDTH - RIGHT) if max(xs) > min(xs) else scale(xs, LEFT, WIDTH - RIGHT)
    up = scale(deciding, HEIGHT - BOTTOM, TOP)
    drawn = Markup("").join(_curve(line, across, up) for line in sorted(lines, key=lambda line: (line.style != "rest", line.is_mean)))
    labels = _labels([line for line in lines if line.is_mean and line.style != "rest"], across, up)
    box = Markup('<svg x="{}" y="{}" width="{}" height="{}" viewBox="{} {} {} {}">{}</svg>')
    frame = (LEFT, TOP, WIDTH - RIGHT - LEFT, HEIGHT - TOP - BOTTOM)
    return _picture(_axes(across, up, x_label, "") + box.format(*frame, *frame, drawn) + labels)


def scatter(marks: Sequence[Curve], x_label: str, y_label: str) -> Markup | None:
    """Draw one letter per run. Each mark is a Curve of one point. Return None if there is nothing to draw."""
    marks = [mark for mark in map(_finite, marks) if mark.points]
    if not marks:
        return None
    across = scale([mark.points[0][0] for mark in marks], LEFT, WIDTH - RIGHT, 0.08)
    up = scale([mark.points[0][1] for mark in marks], HEIGHT - BOTTOM, TOP, 0.08)
    one = Markup('<text class="mark {}" data-tag="{}" x="{:.1f}" y="{:.1f}">{}<title>{}</title></text>')
    dot = Markup('<circle class="dot {}" data-tag="{}" cx="{:.1f}" cy="{:.1f}" r="2.5"><title>{}</title></circle>')
    drawn = Markup("").join(
        dot.format(mark.style, mark.tag, across(x), up(y), mark.title)
        if mark.style == "rest"
        else one.format(mark.style, mark.tag, across(x), up(y) + 4, mark.tag, mark.title)
        for mark in sorted(marks, key=lambda mark: mark.style != "rest")
        for x, y in mark.points
    )
    return _picture(_axes(across, up, x_label, y_label) + drawn)


def strip(values: Sequence[float], mean: float, deviation: float | None, style: str, along: Scale) -> Markup:
    """Draw one row of a ranking: a dot per run, their mean, and a band of one standard deviation to both sides."""
    height, middle = 22, 11
    parts = [Markup('<line class="rule" x1="{:.1f}" x2="{:.1f}" y1="{}" y2="{}"/>').format(along.start, along.end, middle, middle)]
    if deviation is not None:
        low, high = along(mean - deviation), along(mean + deviation)
        parts.append(Markup('<rect class="band" x="{:.1f}" y="5" width="{:.1f}" height="12" rx="3"/>').format(low, max(high - low, 1)))
    parts += [Markup('<circle class="dot" cx="{:.1f}" cy="{}" r="3"/>').format(along(value), middle) for value in values]
    if len(values) > 1:
        parts.append(Markup('<line class="mean" x1="{0:.1f}" x2="{0:.1f}" y1="3" y2="19"/>').format(along(mean)))
    inner = Markup("").join(parts)
    return Markup('<svg class="strip {}" width="{}" height="{}" role="img">{}</svg>').format(style, int(along.end + 8), height, inner)


def _curve(line: Curve, across: Scale, up: Scale) -> Markup:
    if len(line.points) == 1:
        x, y = line.points[0]
        dot = Markup('<circle class="dot {}" data-tag="{}" cx="{:.1f}" cy="{:.1f}" r="3"><title>{}</title></circle>')
        return dot.format(line.style, line.tag, across(x), up(y), line.title)
    path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in line.points)
    kind = "mean" if line.is_mean else "run"
    drawn = Markup('<polyline class="{} {}" data-tag="{}" points="{}"><title>{}</title></polyline>')
    return drawn.format(kind, line.style, line.tag, path, line.title)


def _labels(lines: Sequence[Curve], across: Scale, up: Scale) -> Markup:
    """Draw the letters at the ends of curves. Letters that would overlap are moved apart."""
    ends = sorted(lines, key=lambda line: -line.points[-1][1])
    heights: list[float] = []
    for line in ends:
        heights.append(max(up(line.points[-1][1]) + 4, heights[-1] + 11 if heights else TOP))
    lowest = HEIGHT - BOTTOM + 2.0
    for index in reversed(range(len(heights))):
        heights[index] = lowest = min(heights[index], lowest)
        lowest -= 11
    one = Markup('<text class="end {}" data-tag="{}" x="{:.1f}" y="{:.1f}">{}</text>')
    drawn = (one.format(line.style, line.tag, across(line.points[-1][0]) + 5, y, line.tag) for line, y in zip(ends, heights, strict=True))
    return Markup("").join(drawn)


def _axes(across: Scale, up: Scale, x_label: str, y_label: str) -> Markup:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    drawn = Markup("")
    for tick in up.ticks:
        y = up(tick)
        drawn += Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(LEFT, right, y, y)
        drawn += Markup('<text class="tick" x="{}" y="{:.1f}" text-anchor="end">{:g}</text>').format(LEFT - 6, y + 4, round(tick, 9))
    for tick in across.ticks:
        drawn += Markup('<text class="tick" x="{:.1f}" y="{}" text-anchor="middle">{:g}</text>').format(
            across(tick), bottom + 16, round(tick, 9)
        )
    drawn += Markup('<line class="axis" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(LEFT, right, bottom, bottom)
    drawn += Markup('<text class="label" x="{}" y="{}" text-anchor="end">{}</text>').format(right, HEIGHT - 6, x_label)
    return drawn + Markup('<text class="label" x="{}" y="{}">{}</text>').format(LEFT, TOP + 2, y_label)


def _picture(inner: Markup) -> Markup:
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img">{}</svg>').format(WIDTH, HEIGHT, inner)


def thinned(points: Sequence[tuple[float, float]], at_most: int) -> Sequence[tuple[float, float]]:
    """Return about `at_most` points at equal distances, and the last one."""
    every = -(-len(points) // at_most)
    return points if every <= 1 else [*points[:-1:every], points[-1]]


def _finite(line: Curve) -> Curve:
    points = [(x, y) for x, y in line.points if math.isfinite(x) and math.isfinite(y)]
    return Curve(points, line.tag, line.style, line.title, line.is_mean)
