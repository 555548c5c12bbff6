"""Draws matrices, maps and bars as SVG, without a dependency or a script. Colours are CSS classes of the page."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

CELL, EDGE = 46, 30
Matrix = Sequence[Sequence[float | None]]


def matrix(values: Matrix, unit: str) -> Markup:
    """Draw a matrix with its numbers. Rows and columns are numbered from 1. Negative numbers have another colour. None is empty."""
    known = [abs(value) for row in values for value in row if value is not None]
    largest = max(known, default=0.0) or 1.0
    size = EDGE + CELL * len(values) + 4
    parts = []
    for row, of_row in enumerate(values):
        place = EDGE + CELL * row + CELL / 2 + 4
        parts.append(Markup('<text class="tick" x="{}" y="{}" text-anchor="end">{}</text>').format(EDGE - 6, place, row + 1))
        parts.append(Markup('<text class="tick" x="{}" y="{}" text-anchor="middle">{}</text>').format(place - 4, EDGE - 8, row + 1))
        for column, value in enumerate(of_row):
            if value is not None:
                parts.append(_cell(EDGE + CELL * column, EDGE + CELL * row, value, largest))
    return Markup('<svg class="matrix" width="{0}" height="{0}" viewBox="0 0 {0} {0}" role="img"><title>{1}</title>{2}</svg>').format(
        size, unit, Markup("").join(parts)
    )


def _cell(x: float, y: float, value: float, largest: float) -> Markup:
    square = Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{}" fill-opacity="{:.3f}"/>').format(
        "cool" if value < 0 else "warm", x, y, CELL - 2, CELL - 2, abs(value) / largest
    )
    return square + Markup('<text class="number" x="{}" y="{}" text-anchor="middle">{:.3f}</text>').format(
        x + CELL / 2 - 1, y + CELL / 2 + 4, value
    )


def spatial_map(values: Sequence[Sequence[float]], side: int = 96) -> Markup:
    """Draw a map of numbers from 0 to 1 as squares."""
    rows, columns = len(values), len(values[0])
    squares = Markup("").join(
        Markup('<rect class="warm" x="{}" y="{}" width="1.02" height="1.02" fill-opacity="{:.2f}"/>').format(x, y, max(value, 0.0))
        for y, of_row in enumerate(values)
        for x, value in enumerate(of_row)
        if value > 0.005
    )
    return Markup('<svg class="map" width="{0}" height="{0}" viewBox="0 0 {1} {2}" preserveAspectRatio="none" role="img">{3}</svg>').format(
        side, columns, rows, squares
    )


def bars(series: dict[str, Sequence[float]], low: float, high: float, label: str, width: int = 560, height: int = 220) -> Markup:
    """Draw histograms over equal parts of low … high as outlines, one style for each series."""
    left, bottom, top = 44, height - 34, 10
    largest = max((value for values in series.values() for value in values), default=0.0) or 1.0
    parts = [Markup('<line class="axis" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(left, width - 10, bottom, bottom)]
    for index, (name, values) in enumerate(series.items()):
        step = (width - 10 - left) / len(values)
        points = [
            (left + step * (number + side), bottom - (bottom - top) * value / largest)
            for number, value in enumerate(values)
            for side in (0, 1)
        ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(Markup('<polyline class="mean c{}" points="{}"><title>{}</title></polyline>').format(index, path, name))
        parts.append(
            Markup('<text class="end c{}" x="{}" y="{}" text-anchor="end">{}</text>').format(
                index, width - 14, top + 14 * (index + 1), name
            )
        )
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = left + (width - 10 - left) * share
        parts.append(
            Markup('<text class="tick" x="{:.1f}" y="{}" text-anchor="middle">{:g}</text>').format(
                x, bottom + 16, low + (high - low) * share
            )
        )
    parts.append(Markup('<text class="label" x="{}" y="{}" text-anchor="end">{}</text>').format(width - 10, height - 4, label))
    parts.append(Markup('<text class="tick" x="{}" y="{}" text-anchor="end">{:.0f} %</text>').format(left - 4, top + 8, 100 * largest))
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img">{}</svg>').format(width, height, Markup("").join(parts))
